/* Where a stretch that is to be counted begins and ends: requests to valgrind's callgrind, which cost a few instructions and do nothing
 * elsewhere. */
#include <valgrind/callgrind.h>

void counted_begin(void) {
    CALLGRIND_ZERO_STATS;
}

void counted_end(const char *name) {
    CALLGRIND_DUMP_STATS_AT(name);
}

int counted_here(void) {
    return RUNNING_ON_VALGRIND;
}
