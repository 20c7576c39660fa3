"""Environment variables that keep each library from the instructions that older processors lack."""

from __future__ import annotations

OLDEST = {
    "ATEN_CPU_CAPABILITY": "default",
    "ONEDNN_MAX_CPU_ISA": "SSE41",
    "MKL_CBWR": "COMPATIBLE",
    "OPENCV_CPU_DISABLE": "AVX512-SKX,AVX2,FP16,FMA3,AVX",
    "NPY_DISABLE_CPU_FEATURES": "X86_V3 X86_V4 AVX512_ICL AVX512_SPR",
    "OPENBLAS_CORETYPE": "Prescott",
}
