// SPDX-License-Identifier: MIT
#pragma once

namespace moe_diag::test {

// What a device does at most, measured now. Rates of copies count bytes read and written; 0: could not be measured.
struct Ceilings {
  double device_copy = 0, to_device = 0, to_host = 0;  // bytes a second; the latter two from and to pinned memory
  double f32_products = 0, bf16_products = 0;          // operations a second of a square matrix product of 8192
};
Ceilings measure_ceilings();

}  // namespace moe_diag::test
