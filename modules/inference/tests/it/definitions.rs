//! Labels and prompts that are changed while turns are understood.

use crate::scripted::{Scripted, Seen};
use crate::support::{self, ask, cx, utterance};
use contracts::{
    Inference,
    audio::Role,
    inference::{Analyze, Insight, Task, Tier},
};
use inference::{LlmSettings, Local, Settings};
use metrics_exporter_prometheus::PrometheusBuilder;
use std::{
    fs,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

/// What the issue allows.
const WITHIN: Duration = Duration::from_secs(1);

/// As an editor or `mv` does it: nobody sees half a file.
fn put(folder: &Path, name: &str, text: &str) {
    let draft = folder.join(format!(".{name}"));
    fs::write(&draft, text).unwrap();
    fs::rename(draft, folder.join(name)).unwrap();
}

fn prompt(version: u32) -> String {
    format!("version = {version}\nsystem = 'Label it, this is the {version}th try. {{labels}}'")
}

/// The label of every turn is the file's version.
fn intents(version: u32) -> String {
    let label = |name: &str, more: &str| {
        format!("[[labels]]\nname = '{name}'\ndescription = 'd {name}'\nexamples = ['about {name}', 'my {name}']\n{more}\n")
    };
    format!(
        "version = {version}\ntask = 'intent'\nabstain_below = 0.1\n{}{}",
        label(&format!("v{version}"), "phrases = ['plan']"),
        label("other", "")
    )
}

fn cancel() -> Analyze {
    ask(&[Task::Intent], vec![utterance(Role::Customer, "cancel my plan", 1)])
}

fn follow(local: &Arc<Local>) -> (CancellationToken, JoinHandle<()>) {
    let stop = CancellationToken::new();
    (stop.clone(), tokio::spawn(local.clone().follow_files(stop)))
}

/// Asks until the answer is as wanted; how long that took.
async fn until(local: &Local, mut wanted: impl FnMut(&Insight) -> bool) -> Duration {
    let begun = Instant::now();
    loop {
        let insight = local.analyze(cx(), cancel()).await.unwrap().remove(0);
        if wanted(&insight) {
            return begun.elapsed();
        }
        assert!(begun.elapsed() < Duration::from_secs(30), "still {insight:?}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hundred_changes_in_a_row_are_in_force_within_a_second_each_and_fail_no_call() {
    let folder = tempfile::tempdir().unwrap();
    put(folder.path(), "turn.toml", &prompt(1));
    put(folder.path(), "intent.toml", &intents(1));
    let server = Scripted::start(Seen::answer).await;
    let llm = LlmSettings { url: Some(server.url()), model: "tiny".into(), deadline_ms: 20_000, ..LlmSettings::default() };
    let settings = Settings { classifier: false, definitions: Some(folder.path().into()), llm, ..Settings::default() };
    let local = Arc::new(Local::start(None, Path::new("nowhere"), &settings).unwrap());
    let (stop, following) = follow(&local);

    // Somebody is understood all the time, and every answer is of one state, old or new.
    let (done, calls) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let talking = {
        let (local, done, calls) = (local.clone(), done.clone(), calls.clone());
        tokio::spawn(async move {
            while !done.load(Ordering::SeqCst) {
                let insight = local.analyze(cx(), cancel()).await.unwrap().remove(0);
                assert_eq!(insight.provenance.tier, Tier::Llm);
                assert!(insight.labels[0].name.starts_with('v'), "{insight:?}");
                calls.fetch_add(1, Ordering::SeqCst);
                tokio::task::yield_now().await; // what was answered before is there at once
            }
        })
    };
    let mut slowest = Duration::ZERO;
    let mut hashes = std::collections::HashSet::new();
    for version in 2..=101 {
        let other = if version % 2 == 0 { "turn.toml" } else { "intent.toml" };
        put(folder.path(), other, &if version % 2 == 0 { prompt(version) } else { intents(version) });
        slowest = slowest.max(
            until(&local, |insight| {
                let in_force = match version % 2 {
                    0 => insight.provenance.prompt.as_ref().unwrap().starts_with(&format!("turn@{version} ")),
                    _ => insight.labels[0].name == format!("v{version}"),
                };
                if in_force {
                    hashes.insert(insight.provenance.config_hash.clone());
                }
                in_force
            })
            .await,
        );
    }
    done.store(true, Ordering::SeqCst);
    talking.await.unwrap();
    println!("slowest of 100 changes: {slowest:?}, {} calls meanwhile", calls.load(Ordering::SeqCst));
    assert!(slowest < WITHIN, "{slowest:?}");
    assert_eq!(hashes.len(), 100, "each is a configuration of its own");
    assert!(calls.load(Ordering::SeqCst) > 0);
    let versions: Vec<bool> = server
        .seen()
        .iter()
        .map(|seen| seen.schema()["intent"]["properties"]["label"]["enum"][0].as_str().unwrap().starts_with('v'))
        .collect();
    assert!(versions.iter().all(|ours| *ours), "the schema follows the labels");
    stop.cancel();
    following.await.unwrap();
}

#[tokio::test]
async fn a_broken_file_changes_nothing_and_is_told_until_it_is_whole() {
    let folder = tempfile::tempdir().unwrap();
    put(folder.path(), "intent.toml", &intents(1));
    let settings = Settings { classifier: false, definitions: Some(folder.path().into()), ..Settings::default() };
    let recorder = PrometheusBuilder::new().build_recorder();
    let _counting = metrics::set_default_local_recorder(&recorder);
    let local = Arc::new(Local::start(None, Path::new("nowhere"), &settings).unwrap());
    let (stop, following) = follow(&local);
    let stale = async || local.tiers(cx()).await.unwrap()[0].stale.clone();
    for (name, text, says) in [
        ("intent.toml", intents(2).replace("abstain_below = 0.1", "abstain_below = 2"), "abstain_below is 2"),
        ("intent.toml", String::new(), "version"),
        ("turn.toml", "version = 2\nsystem = 'no place for labels'".into(), "expected once"),
        ("sentiments.toml", String::new(), "expected intent.toml"),
    ] {
        put(folder.path(), name, &text);
        let begun = Instant::now();
        let why = loop {
            match stale().await {
                Some(why) if why.contains(says) => break why,
                _ => tokio::time::sleep(Duration::from_millis(5)).await,
            }
            assert!(begun.elapsed() < Duration::from_secs(30), "{name} with {says:?}");
        };
        assert!(why.contains(name) && why.contains("stays in force"), "{why}");
        until(&local, |insight| insight.labels[0].name == "v1").await;
        assert!(recorder.handle().render().contains("quickcomm_inference_definitions_stale 1"));
        // Whole again, and as it was.
        match name {
            "intent.toml" => put(folder.path(), name, &intents(1)),
            _ => fs::remove_file(folder.path().join(name)).unwrap(),
        }
        while stale().await.is_some() {
            assert!(begun.elapsed() < Duration::from_secs(60));
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
    let text = recorder.handle().render();
    assert!(text.contains("quickcomm_inference_definitions_read_total{outcome=\"refused\"} 4"), "{text}");
    assert!(text.contains("quickcomm_inference_definitions_stale 0"));
    put(folder.path(), "intent.toml", &intents(9));
    until(&local, |insight| insight.labels[0].name == "v9").await;
    stop.cancel();
    following.await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_classifier_learns_new_labels_beside_its_work() {
    let Some(models) = support::models() else { return eprintln!("SKIPPED: no models on disk") };
    let folder = tempfile::tempdir().unwrap();
    let settings = Settings { definitions: Some(folder.path().into()), ..support::patient() };
    let local = Arc::new(Local::start(Some(&support::runtime(&models)), &models, &settings).unwrap());
    local.ready().await.unwrap();
    let (stop, following) = follow(&local);
    let bundled = inference::labels::Labels::read(Task::Intent, None).unwrap().source;
    for version in 2..5 {
        let renamed = bundled
            .replace("name = \"cancel_service\"", &format!("name = \"leave_us_{version}\""))
            .replace("version = 1", &format!("version = {version}"));
        put(folder.path(), "intent.toml", &renamed);
        let took = until(&local, |insight| {
            assert_eq!(insight.provenance.tier, Tier::Local, "it answers all the time: {insight:?}");
            insight.labels[0].name == format!("leave_us_{version}")
        })
        .await;
        println!("learnt in {took:?}");
    }
    stop.cancel();
    following.await.unwrap();
    local.shutdown().await;
}
