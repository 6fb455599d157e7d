//! The Rust of the book, which `cargo test` compiles and runs: the code blocks of each chapter are doc tests, and what
//! tables have in a column "Rust" is compiled with the names of `build.rs`.

#[cfg(doctest)]
mod chapters {
    include!(concat!(env!("OUT_DIR"), "/chapters.rs"));
}

#[cfg(test)]
mod tables {
    include!(concat!(env!("OUT_DIR"), "/tables.rs"));
}
