//! The arrows of the house: who may depend on whom, and which names may be spoken where.

use std::{collections::BTreeMap, fs, path::Path, process::Command};

const ROOT: &str = env!("CARGO_MANIFEST_DIR");

#[test]
fn arrows_point_one_way() {
    let allowed: BTreeMap<&str, &[&str]> = BTreeMap::from([
        ("contracts", &[] as &[&str]),
        ("platform", &["contracts"]),
        ("fabric", &["contracts", "platform"]),
        ("audio", &["contracts", "platform"]),
        ("inference", &["contracts", "platform"]),
        ("api", &["contracts", "platform"]),
        ("quickcomm", &["contracts", "platform", "fabric", "audio", "inference", "api"]),
    ]);
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--no-deps", "--format-version", "1", "--offline"])
        .current_dir(ROOT)
        .output()
        .expect("cargo is there, it runs this test");
    let metadata: serde_json::Value = serde_json::from_slice(&output.stdout).expect("cargo metadata prints JSON");
    let packages = metadata["packages"].as_array().expect("metadata lists packages");
    assert_eq!(packages.len(), allowed.len(), "a package joined or left the workspace: say here what it may depend on");
    for package in packages {
        let name = package["name"].as_str().unwrap_or_default();
        let may = allowed.get(name).unwrap_or_else(|| panic!("{name} is not on the map"));
        for dependency in package["dependencies"].as_array().into_iter().flatten() {
            let on = dependency["name"].as_str().unwrap_or_default();
            if allowed.contains_key(on) && dependency["kind"].is_null() {
                assert!(may.contains(&on), "{name} must not depend on {on}");
            }
        }
    }
}

#[test]
fn names_are_spoken_only_in_their_rooms() {
    let rooms: [(&str, &[&str]); 12] = [
        ("diesel", &["modules/api/src/record"]),
        ("diesel_async", &["modules/api/src/record"]),
        ("tokio_postgres", &["modules/api/src/record"]),
        (
            "actix_web",
            &[
                "modules/audio/src/ingest",
                "modules/api/src/rest",
                "modules/api/src/live",
                "modules/api/src/admin",
                "modules/api/src/lib.rs",
                "src/assembly.rs",
            ],
        ),
        ("actix_ws", &["modules/audio/src/ingest", "modules/api/src/live"]),
        ("tonic", &["modules/fabric"]),
        ("prost", &["modules/fabric"]),
        ("ort::init", &["modules/platform/src/onnx"]),
        ("Session::builder", &["modules/platform/src/onnx"]),
        ("symphonia", &["modules/audio/src/engine"]),
        // A folder each, and those who start its server: tests, and a private split.
        (
            "redis",
            &["modules/platform/src/bus", "modules/platform/src/cache", "modules/platform/src/testing.rs", "src/cli/split/private.rs"],
        ),
        ("deadpool_redis", &["modules/platform/src/bus", "modules/platform/src/cache"]),
    ];
    let mut strays = vec![];
    for file in rust_files(Path::new(ROOT)) {
        let place = file.strip_prefix(ROOT).expect("found below the root").to_string_lossy().into_owned();
        if place.starts_with("tests/") || place.contains("/tests/") {
            continue;
        }
        let text = fs::read_to_string(&file).expect("a source file is text");
        for (name, allowed) in rooms {
            if allowed.iter().any(|room| place.starts_with(room)) {
                continue;
            }
            for (n, line) in text.lines().enumerate() {
                let code = line.split("//").next().unwrap_or_default();
                let spoken = code.match_indices(name).any(|(at, _)| {
                    let before = code[..at].chars().next_back().unwrap_or(' ');
                    let after = code[at + name.len()..].chars().next().unwrap_or(' ');
                    !(before.is_alphanumeric() || before == '_' || after.is_alphanumeric() || after == '_' || before == '"')
                });
                if spoken {
                    strays.push(format!("{place}:{} speaks of {name}, which belongs to {}", n + 1, allowed.join(" or ")));
                }
            }
        }
    }
    assert!(strays.is_empty(), "{}", strays.join("\n"));
}

fn rust_files(root: &Path) -> Vec<std::path::PathBuf> {
    let mut files = vec![];
    let mut folders = vec![root.join("src"), root.join("modules")];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).expect("the tree is readable").flatten() {
            let path = entry.path();
            if path.is_dir() && path.file_name().is_some_and(|n| n != "target") {
                folders.push(path);
            } else if path.extension().is_some_and(|e| e == "rs") {
                files.push(path);
            }
        }
    }
    files
}
