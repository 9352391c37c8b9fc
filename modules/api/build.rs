//! Rebuilds the crate when the dashboard or the migrations changed, because their files are carried in the binary.

fn main() {
    let dist = "../../static/dist";
    // A folder that does not exist counts as always changed, and every build would compile this crate again.
    let _ = std::fs::create_dir_all(dist);
    println!("cargo::rerun-if-changed={dist}");
    println!("cargo::rerun-if-changed=../../migrations"); // a new folder there is a new step in the binary
    println!("cargo::rerun-if-changed=build.rs");
}
