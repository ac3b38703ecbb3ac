# What libnghttp2 calls while `receive` and `collect` run, with the GIL. Included by http2.pyx. None lets an exception out.

cdef Exchange exchange_of(nghttp2_session *session, int32_t stream_id):
    cdef void *found = nghttp2_session_get_stream_user_data(session, stream_id)
    return None if found == NULL else <Exchange> found


cdef int on_begin_frame(nghttp2_session *session, const nghttp2_frame_hd *hd, void *arg) noexcept:
    cdef Session self = <Session> arg
    if hd.type == NGHTTP2_HEADERS:
        self.continuations = 0
    elif hd.type == NGHTTP2_CONTINUATION:
        self.continuations += 1
        if self.continuations > self.continuations_max:
            self.free_actions = -1
            return NGHTTP2_ERR_CALLBACK_FAILURE
    elif hd.type == NGHTTP2_PRIORITY or ((hd.type == NGHTTP2_PING or hd.type == NGHTTP2_SETTINGS) and not hd.flags & NGHTTP2_FLAG_ACK):
        return self.free_action()
    elif hd.type == NGHTTP2_DATA and hd.length == 0 and not hd.flags & NGHTTP2_FLAG_END_STREAM:
        return self.free_action()
    return 0


cdef int on_begin_headers(nghttp2_session *session, const nghttp2_frame *frame, void *arg) noexcept:
    cdef Session self = <Session> arg
    cdef Exchange exchange
    if frame.headers.cat != NGHTTP2_HCAT_REQUEST:
        return 0
    try:
        exchange = Exchange.__new__(Exchange, self, frame.hd.stream_id)
        self.exchanges[frame.hd.stream_id] = exchange
        nghttp2_session_set_stream_user_data(session, frame.hd.stream_id, <void *> exchange)
    except BaseException:
        self.broken = True
        return NGHTTP2_ERR_CALLBACK_FAILURE
    return 0


cdef int on_header(
    nghttp2_session *session, const nghttp2_frame *frame, const uint8_t *name, size_t namelen, const uint8_t *value, size_t valuelen,
    uint8_t flags, void *arg
) noexcept:
    cdef Session self = <Session> arg
    cdef Exchange exchange = exchange_of(session, frame.hd.stream_id)
    if exchange is None:
        return 0  # refused
    exchange.fields += 1
    exchange.header_bytes += namelen + valuelen
    if exchange.header_bytes > self.header_bytes_max or exchange.fields > self.header_fields_max:
        # One byte on the wire can be a field of 4 KiB, which libnghttp2 reads through before it comes here.
        if frame.headers.cat == NGHTTP2_HCAT_REQUEST:
            exchange.oversized = True
        return self.free_action()
    if frame.headers.cat != NGHTTP2_HCAT_REQUEST:
        return 0  # trailers, which mean nothing to S3 (those that count are inside an aws-chunked body)
    try:
        exchange.headers.append(
            (PyBytes_FromStringAndSize(<const char *> name, namelen), PyBytes_FromStringAndSize(<const char *> value, valuelen)))
    except BaseException:
        self.broken = True
        return NGHTTP2_ERR_CALLBACK_FAILURE
    return 0


cdef int on_invalid_header(
    nghttp2_session *session, const nghttp2_frame *frame, const uint8_t *name, size_t namelen, const uint8_t *value, size_t valuelen,
    uint8_t flags, void *arg
) noexcept:
    """A field that libnghttp2 would leave out without a word: the request would then mean something else."""
    cdef Exchange exchange = exchange_of(session, frame.hd.stream_id)
    if exchange is not None and frame.headers.cat == NGHTTP2_HCAT_REQUEST:
        exchange.malformed = True
    return (<Session> arg).free_action()


cdef int on_frame_recv(nghttp2_session *session, const nghttp2_frame *frame, void *arg) noexcept:
    cdef Session self = <Session> arg
    cdef Exchange exchange
    if frame.hd.type == NGHTTP2_RST_STREAM:
        return self.free_action()
    if frame.hd.type != NGHTTP2_HEADERS and frame.hd.type != NGHTTP2_DATA:
        return 0
    exchange = exchange_of(session, frame.hd.stream_id)
    if exchange is None:
        return 0
    if frame.hd.flags & NGHTTP2_FLAG_END_STREAM:
        exchange.ended = True
    if frame.hd.type == NGHTTP2_HEADERS and frame.headers.cat == NGHTTP2_HCAT_REQUEST:
        self.report(REQUEST, exchange)
    elif exchange.ended and exchange.reading and exchange.filled < exchange.view.len:
        self.report(FILLED, exchange)
    return 0


cdef int on_invalid_frame(nghttp2_session *session, const nghttp2_frame *frame, int error, void *arg) noexcept:
    """A frame that costs a stream its life, a refused stream among them."""
    return (<Session> arg).free_action()


cdef int on_frame_send(nghttp2_session *session, const nghttp2_frame *frame, void *arg) noexcept:
    """Resets that a peer provokes cost as much as its own (CVE-2025-8671); those of our own making are not its doing."""
    cdef Session self = <Session> arg
    cdef uint32_t code = frame.rst_stream.error_code if frame.hd.type == NGHTTP2_RST_STREAM else 0
    cdef Exchange exchange
    if (frame.hd.type == NGHTTP2_HEADERS or frame.hd.type == NGHTTP2_DATA) and frame.hd.flags & NGHTTP2_FLAG_END_STREAM:
        exchange = exchange_of(session, frame.hd.stream_id)
        if exchange is not None:
            exchange.answered = True
            if exchange.leaving and not exchange.ended:
                return nghttp2_submit_rst_stream(session, NGHTTP2_FLAG_NONE, frame.hd.stream_id, NO_ERROR)
    if code != 0 and code != NGHTTP2_INTERNAL_ERROR and code != NGHTTP2_REFUSED_STREAM and code != NGHTTP2_CANCEL:
        self.free_actions -= 1
    return 0


cdef int on_data(
    nghttp2_session *session, uint8_t flags, int32_t stream_id, const uint8_t *data, size_t length, void *arg
) noexcept:
    cdef Session self = <Session> arg
    cdef Exchange exchange = exchange_of(session, stream_id)
    self.pay(length)
    # Of the connection's window at once: one stream that is not read must not hold up the others. Its own window bounds it.
    nghttp2_session_consume_connection(session, length)
    if exchange is None:
        nghttp2_session_consume_stream(session, stream_id, length)
    else:
        exchange.take(data, length)
    return 0


cdef int on_close(nghttp2_session *session, int32_t stream_id, uint32_t code, void *arg) noexcept:
    cdef Session self = <Session> arg
    cdef Exchange exchange = exchange_of(session, stream_id)
    if exchange is None:
        return 0
    exchange.closed = True
    exchange.reset_code = code
    try:
        exchange.drop()
        self.exchanges.pop(stream_id, None)
    except BaseException:
        self.broken = True
    self.report(CLOSED, exchange)
    return 0


cdef ssize_t on_read_length(
    nghttp2_session *session, uint8_t frame_type, int32_t stream_id, int32_t session_window, int32_t stream_window,
    uint32_t frame_size_max, void *arg
) noexcept:
    return min(<ssize_t> frame_size_max, min(<ssize_t> session_window, <ssize_t> stream_window))


cdef ssize_t on_read(
    nghttp2_session *session, int32_t stream_id, uint8_t *room, size_t length, uint32_t *flags, nghttp2_data_source *source, void *arg
) noexcept:
    """How much of the stream's body goes into the next frame."""
    cdef Exchange exchange = <Exchange> source.ptr
    cdef Py_ssize_t count = exchange.queued
    cdef nghttp2_nv fields[FIELDS_MAX]
    if count == 0 and not exchange.out_ended:
        exchange.deferred = True
        return NGHTTP2_ERR_DEFERRED
    if count > <Py_ssize_t> length:
        count = length
    flags[0] = NGHTTP2_DATA_FLAG_NO_COPY
    if exchange.out_ended and count == exchange.queued:
        flags[0] |= NGHTTP2_DATA_FLAG_EOF
        if exchange.trailers is not None:
            flags[0] |= NGHTTP2_DATA_FLAG_NO_END_STREAM
            try:
                if nghttp2_submit_trailer(session, stream_id, fields, fill_fields(fields, exchange.trailers)) != 0:
                    return NGHTTP2_ERR_CALLBACK_FAILURE
            except BaseException:
                return NGHTTP2_ERR_CALLBACK_FAILURE
    return count


cdef int on_send_data(
    nghttp2_session *session, nghttp2_frame *frame, const uint8_t *framehd, size_t length, nghttp2_data_source *source, void *arg
) noexcept:
    """A frame's header and the body bytes behind it, as references."""
    cdef Session self = <Session> arg
    cdef Exchange exchange = <Exchange> source.ptr
    cdef Py_ssize_t left = length, size
    if self.batch_bytes >= self.batch_max:
        return NGHTTP2_ERR_WOULDBLOCK
    try:
        self.batch.append(PyBytes_FromStringAndSize(<const char *> framehd, FRAME_HEADER))
        while left:
            if exchange.at == exchange.length:
                exchange.current = exchange.out.popleft()
                exchange.length = len(exchange.current)
                exchange.at = 0
            size = min(exchange.length - exchange.at, left)
            self.batch.append(exchange.current[exchange.at : exchange.at + size])
            exchange.at += size
            left -= size
        if exchange.at == exchange.length:
            exchange.current = None
    except BaseException:
        self.broken = True
        return NGHTTP2_ERR_CALLBACK_FAILURE
    self.pay(length)
    self.batch_bytes += FRAME_HEADER + <Py_ssize_t> length
    exchange.queued -= length
    self.queued -= length
    exchange.sent += length
    return 0
