# Instruction-set levels of the kernels and their compiler flags. Read by setup.py and by
# csrc/tests/Makefile: one "ISA_<level> = flags" per line, in the order of enum class Isa.
ISA_scalar =
ISA_avx2 = -mavx2 -mfma -mbmi -mbmi2 -mf16c -mpopcnt -mlzcnt
ISA_avx512 = -mavx2 -mfma -mbmi -mbmi2 -mf16c -mpopcnt -mlzcnt -mavx512f -mavx512bw -mavx512dq -mavx512vl -mavx512cd
