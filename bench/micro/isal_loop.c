/* The yardstick of bench/micro/codec.py: ISA-L called from C in a loop, with nothing of Anvil in between. */
#include <isa-l.h>
#include <stdlib.h>
#include <time.h>

/* Seconds for `times` encodings of k data units at `units` into the m parity units behind them. */
double isal_encode_s(unsigned char *units, int k, int m, int unit, int times) {
    unsigned char matrix[24 * 16], tables[32 * 16 * 8], *place[24];
    struct timespec a, b;
    gf_gen_cauchy1_matrix(matrix, k + m, k);
    ec_init_tables(k, m, matrix + k * k, tables);
    for (int i = 0; i < k + m; i++)
        place[i] = units + (size_t)i * (size_t)unit;
    clock_gettime(CLOCK_MONOTONIC, &a);
    for (int i = 0; i < times; i++)
        ec_encode_data(unit, k, m, tables, place, place + k);
    clock_gettime(CLOCK_MONOTONIC, &b);
    return (double)(b.tv_sec - a.tv_sec) + (double)(b.tv_nsec - a.tv_nsec) / 1e9;
}
