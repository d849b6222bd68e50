/* How fast memory can be read: the best of several passes of all cores over an array that no cache holds, in GB/s.
   gcc -O3 -march=native -fopenmp -o memory_read memory_read.c */
#include <omp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

int main(void)
{
    const size_t count = (size_t)1 << 27; /* of 8 bytes: 1 GiB */
    uint64_t *values = malloc(count * sizeof *values);
    if (!values)
        return 1;
    memset(values, 1, count * sizeof *values);
    double best = 0;
    uint64_t sum = 0;
    for (int pass = 0; pass < 8; pass++) {
        double started = omp_get_wtime();
#pragma omp parallel for reduction(+ : sum) schedule(static)
        for (size_t i = 0; i < count; i++)
            sum += values[i];
        double rate = (double)(count * sizeof *values) / (omp_get_wtime() - started) / 1e9;
        if (rate > best)
            best = rate;
    }
    fprintf(stderr, "%llu\n", (unsigned long long)sum); /* so that nothing is left out */
    printf("%.2f\n", best);
    free(values);
    return 0;
}
