/* MKL, which PyTorch computes with, takes its AVX-512 paths only where this says "Intel". Preloaded, it makes the
   "tuned" peer on AMD processors:  gcc -shared -fPIC -O1 -o mkl_as_intel.so mkl_as_intel.c */
int mkl_serv_intel_cpu_true(void)
{
    return 1;
}
