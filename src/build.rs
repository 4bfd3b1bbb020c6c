//! How the linker packs the program.
//!
//! A program that may lie anywhere in memory holds a list of the places to adjust: a megabyte, or 13 KB when it is packed
//! as `DT_RELR`. glibc reads that since 2.36. A build is packed where the glibc that it is built against does, so that it
//! runs wherever it would otherwise.
#![expect(clippy::disallowed_methods, reason = "Cargo tells a build script by the environment")]

use std::process::Command;

/// The first glibc that reads packed relocations (release notes of 2.36).
const READS_PACKED: (u32, u32) = (2, 36);

fn main() {
    println!("cargo::rerun-if-changed=src/build.rs");
    // Built for the system that builds it, or it is not known what the program meets.
    let native = std::env::var("HOST").ok() == std::env::var("TARGET").ok();
    if native && glibc().is_some_and(|version| version >= READS_PACKED) {
        println!("cargo::rustc-link-arg-bins=-Wl,-z,pack-relative-relocs");
    }
}

/// The version of this system's glibc, from `glibc 2.36` (getconf(1)).
fn glibc() -> Option<(u32, u32)> {
    let told = Command::new("getconf").arg("GNU_LIBC_VERSION").output().ok()?;
    let told = String::from_utf8(told.stdout).ok()?;
    let (major, minor) = told.trim().strip_prefix("glibc ")?.split_once('.')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}
