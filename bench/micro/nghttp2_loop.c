/* What nghttp2 alone takes for what `bench.counted.paths.http2` does: requests received, each answered with 4 KiB. */
#include <nghttp2/nghttp2.h>
#include <stdint.h>
#include <string.h>

enum { BODY = 4096 };
static uint8_t body[BODY];
static size_t left;
static int32_t asked;

static ssize_t give(nghttp2_session *session, int32_t stream, uint8_t *buffer, size_t length, uint32_t *flags,
                          nghttp2_data_source *source, void *user) {
    (void)session, (void)stream, (void)source, (void)user;
    size_t count = left < length ? left : length;
    memcpy(buffer, body + BODY - left, count);
    left -= count;
    if (!left)
        *flags |= NGHTTP2_DATA_FLAG_EOF;
    return (ssize_t)count;
}

static int on_frame(nghttp2_session *session, const nghttp2_frame *frame, void *user) {
    (void)session, (void)user;
    if (frame->hd.type == NGHTTP2_HEADERS)
        asked = frame->hd.stream_id;
    return 0;
}

#define FIELD(name, value) {(uint8_t *)(name), (uint8_t *)(value), sizeof(name) - 1, sizeof(value) - 1, NGHTTP2_NV_FLAG_NONE}

/* 0, or -1 where a frame was not taken. */
int requests(const uint8_t *preface, size_t preface_len, const uint8_t *block, size_t block_len, int count) {
    nghttp2_session_callbacks *callbacks;
    nghttp2_session *session;
    uint8_t frame[4096], window[13] = {0, 0, 4, 8, 0, 0, 0, 0, 0, 0, 0, BODY >> 8, BODY & 255};
    const uint8_t *out;
    int failed = 0;
    nghttp2_nv fields[] = {FIELD(":status", "200"), FIELD("content-length", "4096"),
                           FIELD("etag", "\"d41d8cd98f00b204e9800998ecf8427e\"")};
    if (block_len + 9 > sizeof frame || nghttp2_session_callbacks_new(&callbacks))
        return -1;
    nghttp2_session_callbacks_set_on_frame_recv_callback(callbacks, on_frame);
    if (nghttp2_session_server_new(&session, callbacks, NULL))
        return -1;
    nghttp2_submit_settings(session, NGHTTP2_FLAG_NONE, NULL, 0);
    failed |= nghttp2_session_mem_recv(session, preface, preface_len) < 0;
    for (int number = 0; number < count && !failed; number++) {
        uint32_t stream = 2u * (uint32_t)number + 1;
        frame[0] = (uint8_t)(block_len >> 16), frame[1] = (uint8_t)(block_len >> 8), frame[2] = (uint8_t)block_len;
        frame[3] = NGHTTP2_HEADERS, frame[4] = NGHTTP2_FLAG_END_STREAM | NGHTTP2_FLAG_END_HEADERS;
        frame[5] = (uint8_t)(stream >> 24), frame[6] = (uint8_t)(stream >> 16), frame[7] = (uint8_t)(stream >> 8);
        frame[8] = (uint8_t)stream;
        memcpy(frame + 9, block, block_len);
        asked = 0;
        failed |= nghttp2_session_mem_recv(session, frame, block_len + 9) < 0 || asked != (int32_t)stream;
        left = BODY;
        nghttp2_data_provider provider = {.read_callback = give};
        failed |= nghttp2_submit_response(session, asked, fields, 3, &provider) != 0;
        while (nghttp2_session_mem_send(session, &out) > 0)
            ;
        failed |= left != 0;
        failed |= nghttp2_session_mem_recv(session, window, sizeof window) < 0;
    }
    nghttp2_session_del(session);
    nghttp2_session_callbacks_del(callbacks);
    return failed ? -1 : 0;
}
