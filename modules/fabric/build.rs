//! The promises in `contracts/proto`, as Rust.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo::rerun-if-changed=../contracts/proto");
    let files = protox::compile(
        [
            "quickcomm/call.proto",
            "quickcomm/hello.proto",
            "quickcomm/audio.proto",
            "quickcomm/inference.proto",
            "quickcomm/conversations.proto",
        ],
        ["../contracts/proto"],
    )?;
    Ok(tonic_prost_build::configure().bytes(".").include_file("quickcomm.rs").compile_fds(files)?)
}
