// SPDX-License-Identifier: MIT
//! An engine in Rust that records itself, with the standard library alone: what engine.c does, by 30 lines of its own.
//!
//!     rustc engine.rs && ./engine dump
use std::{collections::BTreeMap, fs, io, io::Seek, io::Write, path::Path};

// The recorder: rows go to NAME.npy.part, which gets its header and its name when the dump is closed.
struct Dump<'a> {
    path: &'a Path,
    calls: usize,
    arrays: BTreeMap<String, (&'static str, usize, u64)>, // type, values of a row, bytes so far
}
impl Dump<'_> {
    fn info(&self, closed: bool) -> io::Result<()> {
        let text = r#"{"format": "moe-diag dump", "version": 1, "engine": "my port 0.3""#;
        fs::write(self.path.join("dump.new"), format!("{text}, \"closed\": {closed}, \"calls\": {}}}\n", self.calls))?;
        fs::rename(self.path.join("dump.new"), self.path.join("dump.json"))
    }
    // `name`: "lm_head" or "layer_07/moe_ffn_out"; `kind`: "<f4", "<f2", "|V2" for bf16, "<i4"; `bytes`: of the rows of a call
    fn rows(&mut self, name: &str, kind: &'static str, width: usize, bytes: &[u8]) -> io::Result<()> {
        let part = self.path.join(format!("{name}.npy.part"));
        fs::create_dir_all(part.parent().unwrap())?;
        let mut file = fs::OpenOptions::new().create(true).append(true).open(part)?;
        let array = self.arrays.entry(name.into()).or_insert((kind, width, 0));
        array.2 += bytes.len() as u64;
        if array.2 == bytes.len() as u64 { file.write_all(&header(kind, width, 0))?; }
        file.write_all(bytes)
    }
    fn end(&mut self, line: &str) -> io::Result<()> {
        self.calls += 1; // the line comes after the rows of its call
        writeln!(fs::OpenOptions::new().create(true).append(true).open(self.path.join("calls.jsonl"))?, "{line}")
    }
    fn close(self) -> io::Result<()> {
        for (name, (kind, width, bytes)) in &self.arrays {
            let part = self.path.join(format!("{name}.npy.part"));
            let size = if kind.ends_with('4') { 4 } else { 2 };
            let mut file = fs::OpenOptions::new().write(true).open(&part)?;
            file.rewind()?;
            file.write_all(&header(kind, *width, bytes / (size * *width as u64)))?;
            fs::rename(&part, part.with_extension(""))?;
        }
        self.info(true)
    }
}
fn header(kind: &str, width: usize, rows: u64) -> Vec<u8> {
    let text = format!("{{'descr': '{kind}', 'fortran_order': False, 'shape': ({rows}, {width}), }}");
    [b"\x93NUMPY\x01\x00\x76\x00", format!("{text:117}\n").as_bytes()].concat()
}

fn bytes<T: Copy, const N: usize>(values: &[T], to: fn(T) -> [u8; N]) -> Vec<u8> {
    values.iter().flat_map(|&value| to(value)).collect()
}

fn main() -> io::Result<()> {
    let path = std::env::args().nth(1).unwrap_or("dump".into());
    fs::create_dir(&path)?;
    let mut dump = Dump { path: Path::new(&path), calls: 0, arrays: BTreeMap::new() };
    dump.info(false)?;
    for (first, tokens) in [(0, vec![5, 6, 7]), (3, vec![8])] {
        let rows = tokens.len();
        for layer in 0..2 {
            let ids: Vec<i32> = (0..rows * 3).map(|i| (i % 3 + layer) as i32).collect();
            let out: Vec<u16> = (0..rows * 8).map(|i| (0x3f80 + 16 * layer + i) as u16).collect();
            dump.rows(&format!("layer_{layer:02}/moe_router_indices"), "<i4", 3, &bytes(&ids, i32::to_le_bytes))?;
            dump.rows(&format!("layer_{layer:02}/moe_ffn_out"), "|V2", 8, &bytes(&out, u16::to_le_bytes))?;
        }
        let logits: Vec<f32> = (0..11).map(|i| (tokens[rows - 1] + i) as f32).collect();
        dump.rows("lm_head", "<f4", 11, &bytes(&logits, f32::to_le_bytes))?; // of the last row only
        dump.end(&format!(r#"{{"request": "0", "first": {first}, "rows": {rows}, "tokens": {tokens:?}, "recorded": {{"lm_head": 1}}}}"#))?;
    }
    dump.close()
}
