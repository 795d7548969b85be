// Which way a pass goes on a GPU: every rule of the CUDA floor, as measured on an H200.
#pragma once

#include <cstdint>

namespace deepl0::torch_ops::on_cuda {

/// Whether a sum of `entries` rows of length p beats a dense product, p wide and p deep.
///
/// From p = 4 entries on, measured: per row of the result 2 p^2 flops at about 45 TFLOP/s stand
/// against 4 p entries bytes from L2, and the dense code is written and read as well. Where TF32 is
/// allowed a product is eight times as fast; 64 follows from that, and is no measurement of the
/// two.
bool gathers_pay(int64_t p, int64_t entries);

/// Whether a sum over the batch is cheaper by sorted supports than as a dense product.
///
/// `entries` units of `width` are in use a row; `flops` are those of the dense product. Sorting
/// takes some 25 us whatever the size, so small products stay dense; beyond, from width = 12
/// entries on. `half`: the product is one of half types, on tensor cores, and taken to be eight
/// times as fast; chosen by count, not measured.
bool sorting_pays(int64_t width, int64_t entries, double flops, bool half = false);

/// Whether the codes of half types, `entries` of p a row, are multiplied by D as dense rows, on
/// tensor cores, and the gradient of the values is read out of a dense product.
///
/// Of p = 512 and 32 entries torch's dense decode took 13 us on an H200, gathers 21; of p = 16384
/// 101 and 23. Between them chosen by count, not measured.
bool half_products_pay(int64_t p, int64_t entries);

/// Whether dS may be added up by atomic additions, in no fixed order, where it would be sorted.
bool atomics_allowed();

/// Of W x at a time: 1 GB of float32.
int64_t most_elements();

/// What C++ cannot ask torch for and its caller knows: whether products may be of TF32, and what
/// dk.allow_atomics said.
void tell(bool tf32, bool atomics);

/// For tests: "gathers" or "products" wherever there is a choice, "rules" again; and how many
/// elements of W x are held at a time (0: as many as ever).
void force(const char* way, int64_t elements);

}  // namespace deepl0::torch_ops::on_cuda
