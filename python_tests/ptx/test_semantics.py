"""Instructions against NumPy: each runs on a row of inputs, edge cases included."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from .floating import bf16_to_f32, f32_to_bf16
from .support import apply, execute

RNG = np.random.default_rng(0)
S32 = np.concatenate(
    [
        RNG.integers(-(2**31), 2**31, 40),
        [0, 1, -1, 2**31 - 1, -(2**31), 7, -7, 31, 32, 33, 255, 256, -100, 5, 3, 100000],
        RNG.integers(-40, 40, 8),
    ]
).astype(np.int32)
T32 = np.roll(S32, 17)
U32, V32 = S32.view(np.uint32), T32.view(np.uint32)
S64 = (S32.astype(np.int64) << 17) ^ (T32.astype(np.int64) * 12345677)
T64 = np.roll(S64, 5)
SMALL = RNG.integers(0, 70, 64).astype(np.uint32)
F32 = np.concatenate(
    [
        RNG.standard_normal(40) * 10.0 ** RNG.integers(-6, 7, 40),
        [0.0, -0.0, np.inf, -np.inf, np.nan, 1e-45, -3e-39, 3.4e38, 1.5, 2.5, -0.5, -2.5],
        [
            1e10,
            -1e10,
            2147483647.0,
            65504.0,
            65520.0,
            1e-8,
            0.1,
            -1.0,
            16777217.0,
            4.2e9,
            -7.9,
            7.9,
        ],
    ]
).astype(np.float32)
G32 = np.roll(F32, 11)


def equal(got: np.ndarray, want: np.ndarray) -> None:
    np.testing.assert_array_equal(got, want.astype(got.dtype))


@pytest.mark.parametrize(
    ("op", "want"),
    [
        ("add.s32", lambda a, b: a + b),
        ("sub.s32", lambda a, b: a - b),
        ("mul.lo.s32", lambda a, b: a * b),
        ("mul.hi.s32", lambda a, b: (a.astype(np.int64) * b) >> 32),
        ("min.s32", np.minimum),
        ("max.s32", np.maximum),
        ("and.b32", np.bitwise_and),
        ("or.b32", np.bitwise_or),
        ("xor.b32", np.bitwise_xor),
        ("div.s32", lambda a, b: np.where(b == 0, -1, np.trunc(a / np.where(b == 0, 1, b)))),
        ("rem.s32", lambda a, b: np.where(b == 0, a, np.fmod(a, np.where(b == 0, 1, b)))),
    ],
)
def test_integer_pairs(op, want):
    with np.errstate(over="ignore"):
        value = want(S32, T32)
    equal(
        apply(f"{op} {{d}}, {{a}}, {{b}};", "s32", ("s32", S32), ("s32", T32)), value.astype("i8")
    )


def test_wide_and_high_products():
    got = apply("mul.wide.s32 {d}, {a}, {b};", "s64", ("s32", S32), ("s32", T32))
    equal(got, S32.astype(np.int64) * T32)
    got = apply("mul.wide.u32 {d}, {a}, {b};", "u64", ("u32", U32), ("u32", V32))
    equal(got, U32.astype(np.uint64) * V32)
    got = apply("mad.wide.s32 {d}, {a}, {b}, {c};", "s64", ("s32", S32), ("s32", T32), ("s64", S64))
    equal(got, S32.astype(np.int64) * T32 + S64)
    got = apply(
        "mul.hi.u64 {d}, {a}, {b};", "u64", ("u64", S64.view("u8")), ("u64", T64.view("u8"))
    )
    pairs = zip(S64.view("u8"), T64.view("u8"), strict=True)
    equal(got, np.array([int(a) * int(b) >> 64 for a, b in pairs], "u8"))
    got = apply("mul.hi.s64 {d}, {a}, {b};", "s64", ("s64", S64), ("s64", T64))
    equal(got, np.array([int(a) * int(b) >> 64 for a, b in zip(S64, T64, strict=True)]))


def test_carry_chain_adds_64_bit_numbers():
    low, high = U32, np.roll(U32, 3)
    body = "add.cc.u32 {d}, {a}, {b}; addc.u32 {d}, {c}, {c};"
    got = apply(body, "u32", ("u32", low), ("u32", V32), ("u32", high))
    equal(got, high + high + ((low.astype("u8") + V32) >> 32).astype("u4"))
    got = apply("sub.cc.u32 {d}, {a}, {b}; subc.u32 {d}, {c}, 0;", "u32",
                ("u32", low), ("u32", V32), ("u32", high))  # fmt: skip
    equal(got, high - (low < V32).astype("u4"))


def test_shifts_clamp():
    n = SMALL
    inside = n < 32
    equal(apply("shl.b32 {d}, {a}, {b};", "u32", ("u32", U32), ("u32", n)),
          np.where(inside, U32 << (n & 31), 0))  # fmt: skip
    equal(apply("shr.u32 {d}, {a}, {b};", "u32", ("u32", U32), ("u32", n)),
          np.where(inside, U32 >> (n & 31), 0))  # fmt: skip
    equal(apply("shr.s32 {d}, {a}, {b};", "s32", ("s32", S32), ("u32", n)),
          S32 >> np.minimum(n, 31).astype("i4"))  # fmt: skip
    equal(apply("shr.s64 {d}, {a}, {b};", "s64", ("s64", S64), ("u32", n)),
          S64 >> np.minimum(n, 63).astype("i8"))  # fmt: skip
    equal(apply("shl.b32 {d}, {a}, 35;", "u32", ("u32", U32)), np.zeros(64))
    both = (V32.astype("u8") << np.uint64(32)) | U32
    got = apply("shf.l.wrap.b32 {d}, {a}, {b}, {c};", "u32",
                ("u32", U32), ("u32", V32), ("u32", n))  # fmt: skip
    equal(got, ((both << (n & 31).astype("u8")) >> np.uint64(32)).astype("u4"))
    got = apply("shf.r.clamp.b32 {d}, {a}, {b}, {c};", "u32",
                ("u32", U32), ("u32", V32), ("u32", n))  # fmt: skip
    equal(got, (both >> np.minimum(n, 32).astype("u8")).astype("u4"))


def _bfe(a: int, pos: int, length: int, bits: int, signed: bool) -> int:
    """The PTX manual's definition, bit by bit."""
    pos, length, a = pos & 255, length & 255, a & ((1 << bits) - 1)
    sign = (a >> min(pos + length - 1, bits - 1)) & 1 if signed and length else 0
    value = 0
    for i in range(bits):
        bit = (a >> (pos + i)) & 1 if i < length and pos + i < bits else sign
        value |= bit << i
    return value


@pytest.mark.parametrize("kind", ["u32", "s32", "u64", "s64"])
def test_bit_field_extract(kind):
    bits, signed = int(kind[1:]), kind[0] == "s"
    a = (S32 if bits == 32 else S64).view(f"u{bits // 8}")
    pos, length = SMALL, np.roll(SMALL, 7)
    triples = zip(a, pos, length, strict=True)
    want = [_bfe(int(x), int(p), int(n), bits, signed) for x, p, n in triples]
    got = apply(f"bfe.{kind} {{d}}, {{a}}, {{b}}, {{c}};", f"b{bits}",
                (f"b{bits}", a), ("u32", pos), ("u32", length))  # fmt: skip
    equal(got, np.array(want, a.dtype))
    want = [_bfe(int(x), 5, 9, bits, signed) for x in a]
    equal(apply(f"bfe.{kind} {{d}}, {{a}}, 5, 9;", f"b{bits}", (f"b{bits}", a)),
          np.array(want, a.dtype))  # fmt: skip


def test_bit_field_insert():
    pos, length = SMALL, np.roll(SMALL, 7)
    want = []
    for a, b, p, n in zip(U32, V32, pos, length, strict=True):
        mask = sum(1 << i for i in range(int(p), min(int(p) + int(n), 32)))
        want.append((int(b) & ~mask) | ((int(a) << int(p)) & mask))
    body = "bfi.b32 {d}, {a}, {b}, {c}, {e};"
    got = apply(
        body, "b32", ("b32", U32), ("b32", V32), ("u32", pos), ("u32", pos), ("u32", length)
    )
    equal(got, np.array(want, "u4"))


def test_bit_counts_and_permutations():
    text = [f"{int(x):032b}" for x in U32]
    equal(apply("popc.b32 {d}, {a};", "u32", ("b32", U32)), np.array([t.count("1") for t in text]))
    equal(apply("clz.b32 {d}, {a};", "u32", ("b32", U32)),
          np.array([32 - len(t.lstrip("0")) for t in text]))  # fmt: skip
    equal(apply("brev.b32 {d}, {a};", "b32", ("b32", U32)),
          np.array([int(t[::-1], 2) for t in text], "u4"))  # fmt: skip
    equal(apply("bfind.u32 {d}, {a};", "u32", ("u32", U32)),
          np.array([int(x).bit_length() - 1 for x in U32]).astype("u4"))  # fmt: skip
    want = [(int(x) if x >= 0 else ~int(x)).bit_length() - 1 for x in S32]
    equal(apply("bfind.s32 {d}, {a};", "u32", ("s32", S32)), np.array(want).astype("u4"))
    got = apply("lop3.b32 {d}, {a}, {b}, {c}, 0xE8;", "b32",
                ("b32", U32), ("b32", V32), ("b32", U32[::-1].copy()))  # fmt: skip
    c = U32[::-1]
    equal(got, (U32 & V32) | (V32 & c) | (U32 & c))
    got = apply("prmt.b32 {d}, {a}, {b}, 0x5BF0;", "b32", ("b32", U32), ("b32", V32))
    a, b = U32.view("u1").reshape(-1, 4), V32.view("u1").reshape(-1, 4)
    sign = lambda x: np.where(x & 128, 255, 0).astype("u1")  # noqa: E731
    want = np.stack([a[:, 0], sign(b[:, 3]), sign(a[:, 3]), b[:, 1]], 1)
    equal(got, np.ascontiguousarray(want).view("u4").ravel())


@pytest.mark.parametrize("name", ["eq", "ne", "lt", "le", "gt", "ge"])
def test_comparisons(name):
    ufunc = {
        **{"eq": np.equal, "ne": np.not_equal, "lt": np.less, "le": np.less_equal},
        **{"gt": np.greater, "ge": np.greater_equal},
    }[name]
    a, b = np.where(SMALL % 3 == 0, T32, S32), T32
    equal(
        apply(f"setp.{name}.s32 {{d}}, {{a}}, {{b}};", "pred", ("s32", a), ("s32", b)), ufunc(a, b)
    )
    x, y = np.where(SMALL % 3 == 0, G32, F32), G32
    unordered = np.isnan(x) | np.isnan(y)
    pair = (("f32", x), ("f32", y))
    ordered = ufunc(x, y) & ~unordered
    equal(apply(f"setp.{name}.f32 {{d}}, {{a}}, {{b}};", "pred", *pair), ordered)
    equal(apply(f"setp.{name}u.f32 {{d}}, {{a}}, {{b}};", "pred", *pair), ordered | unordered)


def test_unsigned_and_nan_comparisons_and_combination():
    pair = (("u32", U32), ("u32", V32))
    equal(apply("setp.lo.u32 {d}, {a}, {b};", "pred", *pair), U32 < V32)
    equal(apply("setp.hs.u32 {d}, {a}, {b};", "pred", *pair), U32 >= V32)
    nan = np.isnan(F32) | np.isnan(G32)
    equal(apply("setp.nan.f32 {d}, {a}, {b};", "pred", ("f32", F32), ("f32", G32)), nan)
    equal(apply("setp.num.f32 {d}, {a}, {b};", "pred", ("f32", F32), ("f32", G32)), ~nan)
    body = "setp.eq.u32 %p3, {a}, {a}; setp.lt.and.u32 %p2|{d}, {a}, {b}, !%p3;"
    equal(apply(body, "pred", *pair), np.zeros(64, bool))
    body = "setp.gt.u32 %p3, {a}, 1000; setp.lt.or.u32 {d}|%p2, {a}, {b}, %p3;"
    equal(apply(body, "pred", *pair), (U32 < V32) | (U32 > 1000))


@pytest.mark.parametrize("op", ["add", "sub", "mul", "div"])
def test_float_arithmetic(op):
    ufunc = {"add": np.add, "sub": np.subtract, "mul": np.multiply, "div": np.divide}[op]
    with np.errstate(all="ignore"):
        want = ufunc(F32, G32)
    equal(apply(f"{op}.rn.f32 {{d}}, {{a}}, {{b}};", "f32", ("f32", F32), ("f32", G32)), want)


def test_fma_rounds_once():
    a, b, c = F32, G32, np.roll(F32, 23)
    with np.errstate(all="ignore"):
        want = (a.astype("f8") * b + c).astype("f4")
    body = "fma.rn.f32 {d}, {a}, {b}, {c};"
    equal(apply(body, "f32", ("f32", a), ("f32", b), ("f32", c)), want)
    one = np.full(64, 1 + 2.0**-12, "f4")
    got = apply(body, "f32", ("f32", one), ("f32", one), ("f32", -np.full(64, 1 + 2.0**-11, "f4")))
    equal(got, np.full(64, 2.0**-24, "f4"))  # what a rounded product would lose


def test_flush_to_zero():
    tiny = np.full(64, 1e-39, "f4")
    ones = np.ones(64, "f4")
    pair = (("f32", tiny), ("f32", ones))
    equal(apply("mul.ftz.f32 {d}, {a}, {b};", "f32", *pair), np.zeros(64))
    equal(apply("mul.f32 {d}, {a}, {b};", "f32", *pair), tiny)
    equal(apply("mul.ftz.f32 {d}, {a}, 0f3C000000;", "f32", ("f32", np.full(64, 2e-38, "f4"))),
          np.zeros(64))  # fmt: skip


@pytest.mark.parametrize("mode", ["rz", "rm", "rp"])
def test_directed_rounding(mode):
    a, b = np.full(64, 1.0, "f4"), (2.0 ** -np.arange(20, 84, dtype="f8")).astype("f4")
    got = apply(f"sub.{mode}.f32 {{d}}, {{a}}, {{b}};", "f32", ("f32", a), ("f32", b))
    exact = a.astype("f8") - b
    near = exact.astype("f4")
    below = np.where(near.astype("f8") > exact, np.nextafter(near, np.float32(0)), near)
    above = np.where(near.astype("f8") < exact, np.nextafter(near, np.float32(2)), near)
    tail = np.arange(64) > 30  # beyond float64 precision
    want = above if mode == "rp" else below
    equal(got[~tail], want[~tail])


def test_min_max_and_nan():
    a, b = F32, G32
    equal(apply("max.f32 {d}, {a}, {b};", "f32", ("f32", a), ("f32", b)), np.fmax(a, b))
    equal(apply("min.f32 {d}, {a}, {b};", "f32", ("f32", a), ("f32", b)), np.fmin(a, b))
    equal(apply("max.NaN.f32 {d}, {a}, {b};", "f32", ("f32", a), ("f32", b)), np.maximum(a, b))
    a, b = (np.arange(128, dtype="u2") * step for step in (509, 1021))  # both signs, NaN of both
    got = apply("max.NaN.f16x2 {d}, {a}, {b};", "b32", ("b32", a.view("u4")), ("b32", b.view("u4")))
    want = np.maximum(a.view("f2"), b.view("f2"))
    assert 0 < np.isnan(want).sum() < 128
    equal(got.view("u2"), np.where(np.isnan(want), np.uint16(0x7FFF), want.view("u2")))
    zero = np.zeros(64, "f4")
    got = apply("max.f32 {d}, {a}, {b};", "f32", ("f32", -zero), ("f32", zero))
    assert not np.signbit(got).any()
    got = apply("min.f32 {d}, {a}, {b};", "f32", ("f32", zero), ("f32", -zero))
    assert np.signbit(got).all()


@pytest.mark.parametrize(
    ("op", "function"),
    [
        ("ex2.approx", np.exp2),
        ("lg2.approx", np.log2),
        ("rcp.rn", lambda x: 1 / x),
        ("sqrt.rn", np.sqrt),
        ("rsqrt.approx", lambda x: 1 / np.sqrt(x)),
        ("sin.approx", np.sin),
        ("cos.approx", np.cos),
        ("tanh.approx", np.tanh),
        ("neg", np.negative),
        ("abs", np.abs),
    ],
)
def test_float_functions(op, function):
    with np.errstate(all="ignore"):
        want = function(F32.astype("f8")).astype("f4")
    equal(apply(f"{op}.f32 {{d}}, {{a}};", "f32", ("f32", F32)), want)


@pytest.mark.parametrize("kind", ["s8", "u8", "s16", "u16", "s32", "u32", "s64", "u64"])
def test_float_to_integer_saturates(kind):
    bits = int(kind[1:])
    out = f"{kind[0]}{max(bits, 16)}"
    info = np.iinfo(f"{'i' if kind[0] == 's' else 'u'}{bits // 8}")
    for mode, function in {
        "rni": np.rint,
        "rzi": np.trunc,
        "rmi": np.floor,
        "rpi": np.ceil,
    }.items():
        want = []
        for x in F32.astype("f8"):
            if np.isnan(x):
                want.append(0 if bits < 64 else (info.min if kind[0] == "s" else 1 << 63))
            elif np.isinf(x):
                want.append(info.max if x > 0 else info.min)
            else:
                want.append(min(max(int(function(x)), info.min), info.max))
        got = apply(f"cvt.{mode}.{kind}.f32 {{d}}, {{a}};", out, ("f32", F32))
        equal(got, np.array(want, info.dtype))


def test_integer_conversions():
    equal(apply("cvt.s32.s8 {d}, {a};", "s32", ("b32", U32)), S32.astype("i1"))
    equal(apply("cvt.u32.u8 {d}, {a};", "u32", ("b32", U32)), U32.astype("u1"))
    equal(apply("cvt.s64.s32 {d}, {a};", "s64", ("s32", S32)), S32.astype("i8"))
    equal(apply("cvt.u16.u32 {d}, {a};", "u16", ("u32", U32)), U32.astype("u2"))
    equal(apply("cvt.sat.s8.s32 {d}, {a};", "s16", ("s32", S32)), np.clip(S32, -128, 127))
    equal(apply("cvt.sat.u8.s32 {d}, {a};", "u16", ("s32", S32)), np.clip(S32, 0, 255))
    equal(apply("cvt.rn.f32.s32 {d}, {a};", "f32", ("s32", S32)), S32.astype("f4"))
    equal(
        apply("cvt.rn.f64.u64 {d}, {a};", "f64", ("u64", S64.view("u8"))),
        S64.view("u8").astype("f8"),
    )
    got = apply("cvt.rz.f32.s32 {d}, {a};", "f32", ("s32", S32))
    assert (np.abs(got.astype("f8")) <= np.abs(S32.astype("f8"))).all()


def test_half_precision_conversions():
    with np.errstate(over="ignore"):
        half = F32.astype("f2")
    equal(apply("cvt.rn.f16.f32 {d}, {a};", "f16", ("f32", F32)), half)
    equal(apply("cvt.f32.f16 {d}, {a};", "f32", ("f16", half)), half.astype("f4"))
    bf = f32_to_bf16(F32)
    equal(apply("cvt.rn.bf16.f32 {d}, {a};", "b16", ("f32", F32)), bf)
    equal(apply("cvt.f32.bf16 {d}, {a};", "f32", ("b16", bf)), bf16_to_f32(bf))
    got = apply("cvt.rn.bf16x2.f32 {d}, {a}, {b};", "b32", ("f32", F32), ("f32", G32))
    equal(got, (bf.astype("u4") << 16) | f32_to_bf16(G32))
    got = apply("cvt.rn.relu.bf16x2.f32 {d}, {a}, {a};", "b32", ("f32", F32[F32 < 0]))
    equal(got, np.zeros((F32 < 0).sum()))


def test_bf16_rounding_matches_torch():
    bits = RNG.integers(0, 2**32, 4096, dtype=np.uint64).astype(np.uint32)
    x = bits.view("f4")
    x = x[~np.isnan(x)].copy()
    want = torch.from_numpy(x).bfloat16().view(torch.int16).numpy().view(np.uint16)
    equal(f32_to_bf16(x), want)


def test_tf32_rounds_ties_away():
    x = np.array([1.0, 1 + 2.0**-11, 1 + 2.0**-11 - 2.0**-20, -1 - 2.0**-11, 3.0] * 13)[:64]
    got = apply("cvt.rna.tf32.f32 {d}, {a};", "b32", ("f32", x.astype("f4"))).view("f4")
    step = 2.0**-10
    equal(got, np.sign(x) * np.floor(np.abs(x) / step + 0.5) * step)


@pytest.mark.parametrize("kind", ["f16", "bf16"])
def test_half_arithmetic(kind):
    a, b, c = (np.roll(F32[:40], i) for i in range(3))
    if kind == "f16":
        narrow, widen = (lambda x: x.astype("f2")), (lambda h: h.astype("f8"))
    else:
        narrow = lambda x: f32_to_bf16(x.astype("f4"))  # noqa: E731
        widen = lambda h: bf16_to_f32(h).astype("f8")  # noqa: E731
    with np.errstate(all="ignore"):
        x, y, z = narrow(a), narrow(b), narrow(c)
        want = narrow(widen(x) * widen(y) + widen(z))
    sources = [(kind if kind == "f16" else "b16", v) for v in (x, y, z)]
    got = apply(f"fma.rn.{kind} {{d}}, {{a}}, {{b}}, {{c}};", "b16", *sources)
    equal(got, want.view("u2"))


def test_packing_and_vectors():
    got = apply("mov.b32 {{%h1, %h2}}, {a}; mov.b32 {d}, {{%h2, %h1}};", "b32", ("b32", U32))
    equal(got, (U32 << 16) | (U32 >> 16))
    got = apply("mov.b64 {d}, {{{a}, {b}}};", "b64", ("b32", U32), ("b32", V32))
    equal(got, U32.astype("u8") | (V32.astype("u8") << np.uint64(32)))
    data, out = np.arange(256, dtype="f4"), np.zeros(256, "f4")
    execute(
        """mul.wide.u32 %rd10, %r0, 16; add.s64 %rd11, %rd0, %rd10; add.s64 %rd12, %rd1, %rd10;
        ld.global.L1::evict_last.v4.f32 {%f1, %f2, %f3, %f4}, [%rd11];
        st.global.v2.f32 [%rd12], {%f4, %f3}; st.global.v2.f32 [%rd12+8], {%f2, %f1};""",
        data,
        out,
    )
    equal(out.reshape(-1, 4), data.reshape(-1, 4)[:, ::-1])


def test_narrow_loads_extend():
    data = np.arange(-32, 32).astype("i1")
    out = np.zeros(64, "i4")
    execute(
        """cvt.u64.u32 %rd10, %r0; add.s64 %rd11, %rd0, %rd10; ld.global.s8 %r1, [%rd11];
        mul.wide.u32 %rd10, %r0, 4; add.s64 %rd11, %rd1, %rd10; st.global.u32 [%rd11], %r1;""",
        data,
        out,
    )
    equal(out, data)


def test_inline_assembly_scopes_and_loops():
    """Registers and labels in braces are local; each thread leaves its loop on its own."""
    out = np.zeros(64, "i4")
    execute(
        """mov.u32 %r1, 0; mov.u32 %r2, 0;
        { .reg .pred q; .reg .b32 t;
        LOOP: setp.ge.u32 q, %r2, %r0; @q bra DONE;
        add.u32 t, %r2, 1; add.u32 %r1, %r1, t; mov.u32 %r2, t; bra.uni LOOP;
        DONE: }
        mul.wide.u32 %rd10, %r0, 4; add.s64 %rd11, %rd0, %rd10; st.global.u32 [%rd11], %r1;""",
        out,
    )
    equal(out, np.arange(64) * np.arange(1, 65) // 2)


def test_indexed_branch():
    out = np.zeros(64, "i4")
    execute(
        """and.b32 %r1, %r0, 3; TABLE: .branchtargets A, B, C, D; brx.idx %r1, TABLE;
        A: mov.u32 %r2, 10; bra.uni END; B: mov.u32 %r2, 20; bra.uni END;
        C: mov.u32 %r2, 30; bra.uni END; D: mov.u32 %r2, 40;
        END: mul.wide.u32 %rd10, %r0, 4; add.s64 %rd11, %rd0, %rd10;
        st.global.u32 [%rd11], %r2;""",
        out,
    )
    equal(out, np.arange(64) % 4 * 10 + 10)


def test_warp_instructions():
    x = RNG.integers(0, 5, 64).astype("i4")
    rows = x.reshape(2, 32)
    lane = np.arange(64) % 32

    def warp(text: str) -> np.ndarray:
        return apply(text, "s32", ("s32", x))

    equal(warp("shfl.sync.bfly.b32 {d}, {a}, 5, 31, -1;"), rows[:, np.arange(32) ^ 5].ravel())
    got = warp("shfl.sync.up.b32 {d}|%p1, {a}, 3, 0, -1; @!%p1 mov.b32 {d}, -1;")
    equal(got, np.where(lane < 3, -1, np.roll(x, 3)))
    got = warp("shfl.sync.down.b32 {d}|%p1, {a}, 3, 31, -1; @!%p1 mov.b32 {d}, -1;")
    equal(got, np.where(lane > 28, -1, np.roll(x, -3)))
    # Width 8: clamp 31, segment mask 24.
    got = warp("shfl.sync.idx.b32 {d}, {a}, 2, 0x181f, -1;")
    equal(got, x.reshape(8, 8)[:, 2].repeat(8))
    ballot = (rows > 2) @ (1 << np.arange(32))
    got = warp("setp.gt.s32 %p1, {a}, 2; vote.sync.ballot.b32 {d}, %p1, -1;")
    equal(got.view("u4"), ballot.repeat(32))
    same = (rows[:, :, None] == rows[:, None, :]) @ (1 << np.arange(32))
    equal(warp("match.any.sync.b32 {d}, {a}, -1;").view("u4"), same.ravel())
    equal(warp("redux.sync.add.s32 {d}, {a}, -1;"), rows.sum(1).repeat(32))
    equal(warp("setp.gt.s32 %p1, {a}, 2; mov.b32 {d}, 0; @%p1 activemask.b32 {d};").view("u4"),
          np.where(x > 2, ballot.repeat(32), 0))  # fmt: skip


def test_atomics():
    bins, out = np.zeros(4, "i4"), np.zeros(64, "i4")
    execute(
        """and.b32 %r1, %r0, 3; mul.wide.u32 %rd10, %r1, 4; add.s64 %rd11, %rd0, %rd10;
        atom.global.add.u32 %r2, [%rd11], 1;
        mul.wide.u32 %rd10, %r0, 4; add.s64 %rd12, %rd1, %rd10; st.global.u32 [%rd12], %r2;""",
        bins,
        out,
    )
    equal(bins, np.full(4, 16))
    equal(np.sort(out.reshape(16, 4), axis=0), np.arange(16)[:, None].repeat(4, 1))
    value = np.array([5, 100, -3], "i4")
    execute(
        """red.global.max.s32 [%rd0], %r0; red.global.min.s32 [%rd0+4], %r0;
        atom.global.cas.b32 %r1, [%rd0+8], -3, %r0;""",
        value,
    )
    equal(value, np.array([63, 0, 0]))
    number = np.array([0.5], "f4")
    execute("cvt.rn.f32.u32 %f1, %r0; red.global.add.f32 [%rd0], %f1;", number)
    equal(number, np.array([2016.5]))


@pytest.mark.parametrize("op", ["add.s32", "min.s32", "max.u32", "and.b32", "or.b32", "xor.b32",
                                "exch.b32", "inc.u32"])  # fmt: skip
def test_atomics_see_the_lanes_before(op):
    """One lane after the other; many of them at one address, few at another."""
    name, kind = op.split(".")
    rng = np.random.default_rng(3)
    begin = rng.integers(-(2**31), 2**31, 5).astype("i4")
    value, seen = rng.integers(-(2**31), 2**31, 64).astype("i4"), np.zeros(64, "i4")
    to = np.where(np.arange(64) % 5 < 4, 2, rng.integers(0, 5, 64)).astype("u4")
    bins = begin.copy()
    execute(
        f"""mul.wide.u32 %rd9, %r0, 4; add.s64 %rd10, %rd1, %rd9; ld.global.u32 %r1, [%rd10];
        add.s64 %rd10, %rd2, %rd9; ld.global.u32 %r2, [%rd10]; mul.wide.u32 %rd10, %r1, 4;
        add.s64 %rd11, %rd0, %rd10; atom.global.{op} %r3, [%rd11], %r2;
        add.s64 %rd10, %rd3, %rd9; st.global.u32 [%rd10], %r3;""",
        bins, to, value, seen,
    )  # fmt: skip
    plain = {
        "add": lambda a, b: a + b, "min": min, "max": max, "exch": lambda a, b: b,
        "and": lambda a, b: a & b, "or": lambda a, b: a | b, "xor": lambda a, b: a ^ b,
        "inc": lambda a, b: 0 if a >= b else a + 1,
    }[name]  # fmt: skip
    signed = kind[0] == "s"
    held = [int(v) if signed else int(v) % 2**32 for v in begin]
    for lane, at in enumerate(to):
        assert int(seen[lane]) % 2**32 == held[at] % 2**32
        operand = int(value[lane]) if signed else int(value[lane]) % 2**32
        held[at] = plain(held[at], operand)
        held[at] = (held[at] + 2**31) % 2**32 - 2**31 if signed else held[at] % 2**32
    assert [int(b) % 2**32 for b in bins] == [h % 2**32 for h in held]


def test_generic_and_local_addresses():
    out = np.zeros(64, "i4")
    execute(
        """mov.u64 %rd10, mine; cvta.local.u64 %rd11, %rd10; mov.u64 %rd12, tile;
        cvta.shared.u64 %rd13, %rd12; mul.wide.u32 %rd14, %r0, 4; add.s64 %rd13, %rd13, %rd14;
        setp.lt.u32 %p1, %r0, 20; selp.b64 %rd15, %rd11, %rd13, %p1;
        st.u32 [%rd15], %r0; ld.u32 %r1, [%rd15];
        add.s64 %rd16, %rd0, %rd14; st.u32 [%rd16], %r1;""",
        out,
        registers=".local .align 4 .b8 mine[8];",
        declarations=".shared .align 4 .b8 tile[256];",
    )
    equal(out, np.arange(64))


def test_constants_module_variables_and_calls():
    out = np.zeros(64, "f4")
    execute(
        """and.b32 %r1, %r0, 3; mul.wide.u32 %rd10, %r1, 4; mov.u64 %rd11, table;
        add.s64 %rd12, %rd11, %rd10; ld.const.f32 %f1, [%rd12];
        { .param .f32 in; .param .f32 back; st.param.f32 [in], %f1;
        call.uni (back), twice, (in); ld.param.f32 %f2, [back]; }
        mul.wide.u32 %rd13, %r0, 4; add.s64 %rd14, %rd0, %rd13; st.global.f32 [%rd14], %f2;""",
        out,
        declarations="""
        .const .align 4 .f32 table[4] = {0f3F800000, 0f40000000, 0f40800000, 0f41000000};
        .func (.param .f32 r) twice(.param .f32 x) {
          .reg .f32 %a<3>; ld.param.f32 %a1, [x]; add.f32 %a2, %a1, %a1;
          st.param.f32 [r], %a2; ret; }""",
    )
    equal(out, 2.0 ** (np.arange(64) % 4 + 1))
