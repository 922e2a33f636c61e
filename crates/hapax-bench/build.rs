//! Declares the cfg that brings in the rival `idempotent`.

fn main() {
    println!("cargo::rustc-check-cfg=cfg(with_idempotent)");
    println!("cargo::rerun-if-changed=build.rs");
}
