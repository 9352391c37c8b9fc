//! What the module promises its callers, with real models where they are on disk, and without.

use crate::support::{
    self, Fit, answers, answers_apart, ask, calls, cx, intent_of, local, models, normalized, patient, rules, sentiment_of, six_grams,
    turns, utterance,
};
use contracts::{
    CallCx, ErrorKind, Inference,
    audio::Role,
    inference::{Insight, Summarize, SummaryKind, Task, Tier},
    testing::inference_suite,
};
use futures::StreamExt;
use inference::{Local, Settings};
use std::{collections::BTreeSet, fs, path::Path, sync::Arc, time::Duration};

fn labels(insights: &[Insight]) -> Vec<(String, Option<String>)> {
    insights.iter().map(|i| (i.labels.first().map_or(String::new(), |l| l.name.clone()), i.abstained.clone())).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_suite_of_the_contract_holds_on_every_rung() {
    inference_suite(Arc::new(rules())).await;
    inference_suite(Arc::new(Local::start(None, Path::new("nowhere"), &Settings::default()).unwrap())).await;
    if let Some(local) = local().await {
        inference_suite(Arc::new(local)).await;
    }
}

#[tokio::test]
async fn without_a_model_rules_answer_and_say_so() {
    let local = Local::start(None, Path::new("nowhere"), &Settings::default()).unwrap();
    let insights = local.analyze(cx(), ask(&Task::ALL, vec![utterance(Role::Customer, "I want to cancel my plan.", 0)])).await.unwrap();
    assert_eq!(insights[0].labels[0].name, "cancel_service");
    assert!(insights.iter().all(|i| i.provenance.tier == Tier::Rules && i.provenance.degraded_from == Some(Tier::Local)));
    let tiers = local.tiers(cx()).await.unwrap();
    assert!(tiers.iter().all(|t| t.tier == Tier::Rules && t.degraded.as_ref().is_some_and(|why| why.contains("ONNX Runtime"))));
    // Where rules are what was asked for, nothing is degraded.
    assert!(rules().tiers(cx()).await.unwrap().iter().all(|t| t.degraded.is_none()));
}

/// Beside busy threads learning takes minutes, and nobody waits for that to see the process end.
#[tokio::test]
async fn what_is_being_learnt_is_given_up_when_the_process_stops() {
    let Some(models) = models() else { return eprintln!("SKIPPED: no models on disk") };
    let local = Local::start(Some(&support::runtime(&models)), &models, &patient()).unwrap();
    local.shutdown().await;
    assert!(local.ready().await.unwrap_err().contains("ended while loading"));
}

#[tokio::test]
async fn a_damaged_or_missing_model_lowers_the_rung_with_its_reason() {
    let Some(models) = models() else { return eprintln!("SKIPPED: no models on disk") };
    let runtime = support::runtime(&models);
    let broken = tempfile::tempdir().unwrap();
    let folder = broken.path().join("minilm-l6-v2");
    for says in ["no model in", "damaged"] {
        let local = Local::start(Some(&runtime), broken.path(), &patient()).unwrap();
        let why = local.ready().await.unwrap_err();
        assert!(why.contains(says) && why.contains("make models"), "{why}");
        let insights =
            local.analyze(cx(), ask(&[Task::Intent], vec![utterance(Role::Customer, "The internet is down.", 0)])).await.unwrap();
        assert_eq!((insights[0].labels[0].name.as_str(), insights[0].provenance.degraded_from), ("report_outage", Some(Tier::Local)));
        assert_eq!(local.tiers(cx()).await.unwrap()[0].degraded.as_deref(), Some(why.as_str()));
        local.shutdown().await;
        fs::create_dir_all(&folder).unwrap();
        for file in ["model.toml", "tokenizer.json"] {
            fs::copy(models.join("minilm-l6-v2").join(file), folder.join(file)).unwrap();
        }
        fs::write(folder.join("model_int8.onnx"), b"not a model").unwrap();
    }
}

#[tokio::test]
async fn faulty_settings_and_label_files_are_refused_before_anything_starts() {
    let file = tempfile::NamedTempFile::new().unwrap();
    fs::write(file.path(), "version = 1\ntask = 'intent'\nabstain_below = 0.4\nlabels = []").unwrap();
    let settings = Settings { intent_labels: Some(file.path().into()), ..Settings::default() };
    let error = Local::start(None, Path::new("nowhere"), &settings).err().unwrap().to_string();
    assert!(error.contains(&file.path().display().to_string()) && error.contains("at least 2"), "{error}");
    let error = Local::start(None, Path::new("nowhere"), &Settings { queue: 0, ..Settings::default() }).err().unwrap().to_string();
    assert_eq!(error, "setting queue is 0: expected 1 to 65536");
}

#[tokio::test]
async fn agents_have_no_intent_and_unknown_speakers_are_taken_for_customers() {
    let Some(local) = local().await else { return };
    let turns = [Role::Agent, Role::Customer, Role::Unknown].map(|role| utterance(role, "I want to cancel my contract.", role as u64));
    let insights = local.analyze(cx(), ask(&[Task::Intent], turns.into())).await.unwrap();
    assert_eq!(insights[0].abstained.as_deref(), Some("agent turn"));
    assert!(insights[1..].iter().all(|i| i.labels[0].name == "cancel_service"), "{:?}", labels(&insights));
    assert!(insights.iter().all(|i| i.provenance.tier == Tier::Local && i.provenance.degraded_from.is_none()));
}

#[tokio::test]
async fn the_same_request_has_the_same_answer_whoever_asks_and_whenever() {
    let Some(first) = local().await else { return };
    let turns = calls().into_iter().next().unwrap().1;
    let request = ask(&Task::ALL, turns.iter().zip(0..).map(|(t, n)| utterance(t.role(), &t.text, n)).collect());
    let a = first.analyze(cx(), request.clone()).await.unwrap();
    let b = local().await.unwrap().analyze(cx(), request.clone()).await.unwrap();
    assert_eq!(a.iter().map(|i| i.id).collect::<Vec<_>>(), b.iter().map(|i| i.id).collect::<Vec<_>>());
    assert_eq!(labels(&a), labels(&b));
    // Another rung is another run: what it says never passes for the first.
    let c = rules().analyze(cx(), request).await.unwrap();
    assert!(a.iter().zip(&c).all(|(a, c)| a.run != c.run && a.id != c.id && a.utterance == c.utterance));
}

#[tokio::test]
async fn evidence_is_in_range_and_without_it_the_label_is_less_likely() {
    let Some(local) = local().await else { return };
    let (mut decided, mut pointed) = (0, 0);
    for turn in turns() {
        let asked = utterance(Role::Customer, &turn.text, 0);
        for insight in local.analyze(cx(), ask(&Task::ALL, vec![asked.clone()])).await.unwrap() {
            let Some(label) = insight.labels.first() else { continue };
            decided += 1;
            let Some(evidence) = insight.evidence.first() else { continue };
            pointed += 1;
            let (from, to) = (evidence.word_from as usize, evidence.word_to as usize);
            assert!(from < to && to <= asked.words.len());
            let mut without = asked.clone();
            without.words.drain(from..to);
            let left = local.analyze(cx(), ask(&[insight.task], vec![without])).await.unwrap();
            let still = left[0].labels.iter().find(|l| l.name == label.name).map_or(0.0, |l| l.score);
            assert!(still < label.score, "{} without {from}..{to} is {still}, with it {}: {}", label.name, label.score, turn.text);
        }
    }
    assert!(pointed * 10 >= decided * 8, "{pointed} of {decided} labels have evidence");
}

#[tokio::test]
async fn a_call_with_too_little_time_is_answered_by_rules_and_one_without_any_is_refused() {
    let Some(local) = local().await else { return };
    let request = ask(&[Task::Intent], vec![utterance(Role::Customer, "I want to cancel my plan.", 0)]);
    let insights = local.analyze(CallCx::new(Duration::from_millis(10)), request.clone()).await.unwrap();
    assert_eq!((insights[0].provenance.tier, insights[0].provenance.degraded_from), (Tier::Rules, Some(Tier::Local)));
    assert_eq!(local.analyze(CallCx::new(Duration::ZERO), request.clone()).await.unwrap_err().kind, ErrorKind::DeadlineExceeded);
    let cx = cx();
    cx.cancel.cancel();
    assert_eq!(local.analyze(cx, request).await.unwrap_err().kind, ErrorKind::Cancelled);
}

#[tokio::test]
async fn turns_of_any_shape_are_answered() {
    let Some(local) = local().await else { return };
    let endless = "and then I said no. ".repeat(2_000);
    for text in ["", "— … !", "ok", "Ω≈ç√ 你好 🙂", "x. x. x. x. x. x. x. x. x. x. x. x.", endless.as_str()] {
        let insights = local.analyze(cx(), ask(&Task::ALL, vec![utterance(Role::Customer, text, 0)])).await.unwrap();
        assert_eq!(insights.len(), 2, "{text:.40}");
    }
}

#[tokio::test]
async fn label_files_share_nothing_with_what_they_are_measured_on() {
    let measured: Vec<String> = calls().into_iter().flat_map(|(_, t)| t).chain(turns()).map(|t| t.text).collect();
    assert!(measured.len() >= 100, "the demo calls and the turns apart are there: {}", measured.len());
    // One or two words ("yes please") are language, not a sentence someone could have copied.
    let sentences =
        |text: &str| text.split(['.', '?', '!']).map(normalized).filter(|s| s.len() > 3).map(|s| s.join(" ")).collect::<Vec<_>>();
    let known: BTreeSet<String> = measured.iter().flat_map(|t| sentences(t)).collect();
    let grams: BTreeSet<String> = measured.iter().flat_map(|t| six_grams(t)).collect();
    let mut shared = vec![];
    for task in Task::ALL {
        let labels = inference::labels::Labels::read(task, None).unwrap();
        for label in &labels.labels {
            let patterns = [&label.phrases, &label.hints, &label.strong].into_iter().flatten();
            for text in label.examples.iter().chain([&label.description]).chain(patterns.clone()) {
                // A pattern is a turn of phrase; that someone says just that is what it is there for.
                let copied = !patterns.clone().any(|p| p == text) && sentences(text).iter().any(|s| known.contains(s));
                if copied || six_grams(text).intersection(&grams).next().is_some() {
                    shared.push(format!("{}: {text}", label.name));
                }
            }
        }
    }
    assert_eq!(shared, Vec::<String>::new());
}

/// Floors lie well below what was measured: they catch what breaks, and leave room for other words in the scripts.
#[tokio::test]
async fn turns_are_understood_well_enough() {
    let Some(local) = local().await else { return };
    let mut calls_heard = (vec![], vec![], vec![]);
    for (_, turns) in calls() {
        calls_heard.0.extend(answers(&local, Task::Intent, &turns).await);
        calls_heard.1.extend(answers(&local, Task::Sentiment, &turns).await);
        calls_heard.2.extend(turns);
    }
    let (intents, sentiments, turns_of_calls) = calls_heard;
    let apart = turns();
    let rules = rules();
    let fits = [
        ("local intent, demo calls", Fit::of(&turns_of_calls, &intents, intent_of), 0.50),
        ("local sentiment, demo calls", Fit::of(&turns_of_calls, &sentiments, sentiment_of), 0.50),
        ("local intent, turns apart", Fit::of(&apart, &answers_apart(&local, Task::Intent, &apart).await, intent_of), 0.80),
        ("local sentiment, turns apart", Fit::of(&apart, &answers_apart(&local, Task::Sentiment, &apart).await, sentiment_of), 0.60),
        ("rules intent, turns apart", Fit::of(&apart, &answers_apart(&rules, Task::Intent, &apart).await, intent_of), 0.40),
        ("rules sentiment, turns apart", Fit::of(&apart, &answers_apart(&rules, Task::Sentiment, &apart).await, sentiment_of), 0.50),
    ];
    for (name, fit, floor) in &fits {
        println!("{name:<30} {}", fit.row());
        assert!(fit.accuracy() >= *floor, "{name}: {} is below {floor}", fit.row());
    }
}

#[tokio::test]
async fn a_summary_says_why_they_called_in_their_own_words() {
    let Some(local) = local().await else { return };
    let said = [
        (Role::Agent, "Good morning, how can I help?"),
        (Role::Customer, "Hello. You billed me twice for the month of May, and I'd like that corrected."),
        (Role::Agent, "I see it. I will return the second payment to your card within five days."),
        (Role::Customer, "Okay, thank you."),
        (Role::Agent, "The refund has been approved. Goodbye."),
    ];
    let utterances: Vec<_> = said.iter().zip(0..).map(|((role, text), n)| utterance(*role, text, n)).collect();
    let summary = local.summarize(cx(), Summarize { conversation: utterances[0].conversation, utterances }).await.unwrap();
    let items: Vec<_> = summary.map(|i| i.unwrap()).collect().await;
    let text = |kind| items.iter().find(|i| i.kind == kind).map(|i| i.text.as_str());
    assert_eq!(text(SummaryKind::Reason), Some("You billed me twice for the month of May, and I'd like that corrected."));
    assert_eq!(text(SummaryKind::Action), Some("I will return the second payment to your card within five days."));
    assert_eq!(text(SummaryKind::Outcome), Some("The refund has been approved."));
}

#[tokio::test]
async fn classification_runs_on_its_own_named_thread_at_a_lower_priority() {
    let Some(local) = local().await else { return };
    local.analyze(cx(), ask(&Task::ALL, vec![utterance(Role::Customer, "I want to cancel my plan.", 0)])).await.unwrap();
    let nice = |stat: &str| stat.rsplit_once(')').and_then(|(_, rest)| rest.split_whitespace().nth(16)?.parse::<i32>().ok());
    let read = |path: &Path| fs::read_to_string(path.join("stat")).ok();
    let own = nice(&read(Path::new("/proc/thread-self")).unwrap()).unwrap();
    let threads = fs::read_dir("/proc/self/task").unwrap().filter_map(|t| read(&t.ok()?.path()));
    let named: Vec<i32> = threads.filter(|stat| stat.contains("(inference-0)")).filter_map(|stat| nice(&stat)).collect();
    // Threads of other tests may be just starting; this test's own has answered.
    assert!(named.contains(&(own + 10).min(19)), "{named:?} beside {own}");
}
