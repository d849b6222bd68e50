// Dot products with label tables and with texts' embeddings, and the best of them.
//
// Every sum is added in the order of the processor's: crates/similarity for float16 rows, `dot` of
// crates/interrogate for float32. Each operation is named with its rounding, so that no compiler
// fuses or reorders it, and the results are the same bits.
//
// `ranking.ptx` is made of this file by `cargo run -p imprompt-cuda --example ptx` (docs/gpu.md).

// Threads of a warp; all take part in the shuffles, those behind the last row with its values.
constexpr unsigned ALL = 0xffffffff;

// Lanes of a float16 row: element k goes to sum k % 64. A thread has eight neighbouring ones.
constexpr unsigned SUMS = 64;
constexpr unsigned SHARE = 8;
constexpr unsigned THREADS_OF_ROW = SUMS / SHARE;

__device__ __forceinline__ float widen(unsigned bits) {
    float wide;
    asm("cvt.f32.f16 %0, %1;" : "=f"(wide) : "h"((unsigned short)bits));
    return wide;
}

__device__ __forceinline__ void add_pair(float *sums, unsigned pair, const float *image) {
    sums[0] = __fmaf_rn(widen(pair & 0xffff), image[0], sums[0]);
    sums[1] = __fmaf_rn(widen(pair >> 16), image[1], sums[1]);
}

__device__ __forceinline__ void add_share(float *sums, uint4 share, const float *image) {
    add_pair(sums, share.x, image);
    add_pair(sums + 2, share.y, image + 2);
    add_pair(sums + 4, share.z, image + 4);
    add_pair(sums + 6, share.w, image + 6);
}

// `[rows, dimension]` float16 with each of `[images, dimension]` float32: the product of row r and
// image i goes to `products[i * stride + start + r]`. `wrong` becomes the least place of one that is
// not finite. Shared memory: an image, up to a multiple of 64 values.
//
// Blocks of the same rows follow each other, so that later images find the rows in the cache.
extern "C" __global__ void __launch_bounds__(256)
similarities_f16(const unsigned short *table, const float *images, float *products, unsigned *wrong,
                 unsigned rows, unsigned dimension, unsigned image_count, unsigned start,
                 unsigned stride) {
    extern __shared__ float4 memory[];
    float *image = (float *)memory;
    const unsigned number = blockIdx.x % image_count;
    const unsigned end = (dimension + SUMS - 1) / SUMS * SUMS;
    for (unsigned k = threadIdx.x; k < end; k += blockDim.x) {
        image[k] = k < dimension ? images[(size_t)number * dimension + k] : 0.0f;
    }
    __syncthreads();
    const unsigned row =
        blockIdx.x / image_count * (blockDim.x / THREADS_OF_ROW) + threadIdx.x / THREADS_OF_ROW;
    const unsigned short *values = table + (size_t)min(row, rows - 1) * dimension;
    const unsigned first = threadIdx.x % THREADS_OF_ROW * SHARE;
    float sums[SHARE] = {};
    // What is behind the last element counts as zeros: they make -0 to 0.
    if (dimension % SHARE == 0) {
#pragma unroll 4
        for (unsigned k = first; k < end; k += SUMS) {
            const uint4 none = make_uint4(0, 0, 0, 0);
            const uint4 share = k < dimension ? __ldcs((const uint4 *)(values + k)) : none;
            add_share(sums, share, image + k);
        }
    } else {
        for (unsigned k = first; k < end; k += SUMS) {
#pragma unroll
            for (unsigned i = 0; i < SHARE; ++i) {
                const float value = k + i < dimension ? widen(values[k + i]) : 0.0f;
                sums[i] = __fmaf_rn(value, image[k + i], sums[i]);
            }
        }
    }
    // By halves: 32, 16 and 8 between threads, 4, 2 and 1 inside of one.
#pragma unroll
    for (unsigned distance = THREADS_OF_ROW / 2; distance > 0; distance /= 2) {
#pragma unroll
        for (unsigned i = 0; i < SHARE; ++i) {
            const float other = __shfl_down_sync(ALL, sums[i], distance, THREADS_OF_ROW);
            sums[i] = __fadd_rn(sums[i], other);
        }
    }
#pragma unroll
    for (unsigned width = SHARE / 2; width > 0; width /= 2) {
#pragma unroll
        for (unsigned i = 0; i < width; ++i) {
            sums[i] = __fadd_rn(sums[i], sums[i + width]);
        }
    }
    if (first == 0 && row < rows) {
        const unsigned place = number * stride + start + row;
        products[place] = sums[0];
        if (!isfinite(sums[0])) {
            atomicMin(wrong, place);
        }
    }
}

// `[rows, dimension]` float32 with one image: the product of row r goes to `products[r]`. Four
// threads a row, each with four neighbouring ones of the sixteen sums.
extern "C" __global__ void __launch_bounds__(64)
similarities_f32(const float *embeds, const float *image, float *products, unsigned rows,
                 unsigned dimension) {
    const unsigned row = blockIdx.x * (blockDim.x / 4) + threadIdx.x / 4;
    const float *values = embeds + (size_t)min(row, rows - 1) * dimension;
    const unsigned first = threadIdx.x % 4 * 4;
    const unsigned whole = dimension / 16 * 16;
    float sums[4] = {};
    if (dimension % 4 == 0 && (size_t)embeds % 16 == 0) {
#pragma unroll 4
        for (unsigned k = first; k < whole; k += 16) {
            const float4 value = __ldg((const float4 *)(values + k));
            const float4 other = __ldg((const float4 *)(image + k));
            sums[0] = __fadd_rn(sums[0], __fmul_rn(value.x, other.x));
            sums[1] = __fadd_rn(sums[1], __fmul_rn(value.y, other.y));
            sums[2] = __fadd_rn(sums[2], __fmul_rn(value.z, other.z));
            sums[3] = __fadd_rn(sums[3], __fmul_rn(value.w, other.w));
        }
    } else {
        for (unsigned k = first; k < whole; k += 16) {
#pragma unroll
            for (unsigned i = 0; i < 4; ++i) {
                sums[i] = __fadd_rn(sums[i], __fmul_rn(values[k + i], image[k + i]));
            }
        }
    }
#pragma unroll
    for (unsigned distance = 2; distance > 0; distance /= 2) {
#pragma unroll
        for (unsigned i = 0; i < 4; ++i) {
            sums[i] = __fadd_rn(sums[i], __shfl_down_sync(ALL, sums[i], distance, 4));
        }
    }
    if (first == 0 && row < rows) {
        // A sum of nothing is -0, which changes nothing.
        float tail = -0.0f;
        for (unsigned k = whole; k < dimension; ++k) {
            tail = __fadd_rn(tail, __fmul_rn(values[k], image[k]));
        }
        const float even = __fadd_rn(sums[0], sums[2]);
        const float odd = __fadd_rn(sums[1], sums[3]);
        products[row] = __fadd_rn(__fadd_rn(even, odd), tail);
    }
}

// As `key` of crates/interrogate/src/rank.rs: the greater, the better.
__device__ __forceinline__ unsigned long long key(float value, unsigned index) {
    const unsigned bits = __float_as_uint(__fadd_rn(value, 0.0f));
    const unsigned ordered = bits >> 31 == 0 ? bits | 0x80000000 : ~bits;
    return (unsigned long long)ordered << 32 | ~index;
}

// The `keep` greatest of `sign` times the values of each chunk of `chunk`, greatest first, equal ones
// in order of index: pairs of an index and the value itself from `found[block * keep]` on, as many as
// the chunk has. Shared memory: `size` keys, a power of two, not less than a chunk.
extern "C" __global__ void __launch_bounds__(1024)
best(const float *values, uint2 *found, unsigned count, unsigned chunk, unsigned keep, unsigned size,
     float sign) {
    extern __shared__ unsigned long long keys[];
    const unsigned start = blockIdx.x * chunk;
    const unsigned here = min(chunk, count - start);
    for (unsigned i = threadIdx.x; i < size; i += blockDim.x) {
        // 0 is less than any key.
        keys[i] = i < here ? key(__fmul_rn(sign, values[start + i]), start + i) : 0;
    }
    for (unsigned width = 2; width <= size; width *= 2) {
        for (unsigned distance = width / 2; distance > 0; distance /= 2) {
            __syncthreads();
            for (unsigned pair = threadIdx.x; pair < size / 2; pair += blockDim.x) {
                const unsigned low = 2 * pair - (pair & (distance - 1));
                const unsigned long long one = keys[low], other = keys[low + distance];
                if ((one < other) == ((low & width) == 0)) {
                    keys[low] = other;
                    keys[low + distance] = one;
                }
            }
        }
    }
    __syncthreads();
    for (unsigned i = threadIdx.x; i < min(keep, here); i += blockDim.x) {
        const unsigned index = ~(unsigned)keys[i];
        found[(size_t)blockIdx.x * keep + i] = make_uint2(index, __float_as_uint(values[index]));
    }
}
