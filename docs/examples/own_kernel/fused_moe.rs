// SPDX-License-Identifier: MIT
//! A fused MoE in Rust, to be called through ctypes: fused_moe_native.py judges it.
//!
//!     rustc -O --crate-type cdylib fused_moe.rs -o fused_moe.so
//!
//! The shapes are those of fused_moe.c. With `--cfg wrong_below_16` a path for few rows leaves out the last 16 values of
//! each expert.
use std::slice::{from_raw_parts, from_raw_parts_mut};

fn dot(a: &[f32], b: &[f32]) -> f32 {
    a.iter().zip(b).map(|(x, y)| f64::from(*x) * f64::from(*y)).sum::<f64>() as f32
}

/// # Safety
/// The pointers are of arrays of the shapes above.
#[no_mangle]
pub unsafe extern "C" fn fused_moe(
    out: *mut f32, x: *const f32, ids: *const i32, scale: *const f32, gate: *const f32, up: *const f32, down: *const f32,
    rows: i64, used: i64, hidden: i64, width: i64,
) -> i32 {
    let (rows, used, hidden, width) = (rows as usize, used as usize, hidden as usize, width as usize);
    let kept = if cfg!(wrong_below_16) && rows < 16 { width - 16 } else { width };
    for r in 0..rows {
        let row = from_raw_parts(x.add(r * hidden), hidden);
        let sum = from_raw_parts_mut(out.add(r * hidden), hidden);
        sum.fill(0.0);
        for s in 0..used {
            let at = *ids.add(r * used + s) as usize * width * hidden;
            let weight = |w: *const f32, i: usize, n: usize| from_raw_parts(w.add(at + i * n), n);
            let act: Vec<f32> = (0..kept)
                .map(|i| {
                    let g = dot(weight(gate, i, hidden), row);
                    g / (1.0 + (-g).exp()) * dot(weight(up, i, hidden), row)
                })
                .collect();
            for h in 0..hidden {
                sum[h] += *scale.add(r * used + s) * dot(&weight(down, h, width)[..kept], &act);
            }
        }
    }
    0
}
