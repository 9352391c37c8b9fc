//! The language model under counted calls: slow, hanging, failing, refusing and gone.

use super::{Strikes, house::House};
use crate::{
    scripted::{Play, Scripted, Seen},
    support::{Server, eventually},
};
use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

/// How a server can be of no use.
const KINDS: [&str; 5] = ["slow", "hanging", "500", "429", "reset"];
const WELL: usize = usize::MAX;

fn play(kind: usize, asked: &Seen) -> Play {
    match KINDS.get(kind).copied() {
        Some("slow") => Play::After(Duration::from_secs(10), Box::new(asked.answer())),
        Some("hanging") => Play::Hang,
        Some("500") => Play::Reply("500 Internal Server Error", String::new(), b"{}".into()),
        Some("429") => Play::Reply("429 Too Many Requests", "retry-after: 1\r\n".into(), b"{}".into()),
        Some(_) => Play::Cut,
        None => asked.answer(),
    }
}

/// Turns for which it was not asked, because it had failed.
async fn resting(server: &Server) -> f64 {
    let text = reqwest::get(format!("{}/metrics", server.admin)).await.unwrap().text().await.unwrap();
    let of = |line: &&str| line.starts_with("quickcomm_inference_llm_answers_total") && line.contains("\"resting\"");
    text.lines().find(of).and_then(|line| line.rsplit(' ').next()?.parse().ok()).unwrap_or_default()
}

#[tokio::test(flavor = "multi_thread")]
async fn f26_a_failing_language_model_lowers_insights_touches_no_text_and_each_is_raised_once_when_it_is_back() {
    let kind = Arc::new(AtomicUsize::new(WELL));
    let asked = kind.clone();
    let server = Scripted::start(move |seen| play(asked.load(Ordering::SeqCst), seen)).await;
    let url = server.url();
    // The same callers say the same again and again: it is to be asked each time.
    let settings = [
        ("QUICKCOMM_INFERENCE__LLM__URL", url.as_str()),
        ("QUICKCOMM_INFERENCE__LLM__MODEL", "scripted"),
        ("QUICKCOMM_INFERENCE__LLM__REMEMBER_S", "0"),
    ];
    let Some(mut struck) = Strikes::on_house("F26", 5, &settings) else { return };
    struck.to_the_end = false; // somebody must speak, to be answered by another rung
    let mut strikes = 0;
    struck
        .survive(async |house: &mut House, _| {
            let which = strikes % KINDS.len();
            strikes += 1;
            let degraded =
                |house: &House| house.ground.sql("SELECT count(*) FROM insights WHERE degraded_from = 'llm'").parse::<u64>().unwrap();
            let (before, rested) = (degraded(house), resting(&house.understands).await);
            kind.store(which, Ordering::SeqCst);
            // Answered all the same, by the rung below, and said so.
            eventually("turns are answered by a lower rung", Duration::from_secs(30), async || {
                (degraded(house) >= before + 10).then_some(())
            })
            .await;
            eventually("the breaker is open", Duration::from_secs(5), async || (resting(&house.understands).await > rested).then_some(()))
                .await;
            kind.store(WELL, Ordering::SeqCst);
        })
        .await;
    let twice = "SELECT count(*) FROM (SELECT 1 FROM insights GROUP BY utterance_id, task HAVING count(*) > 2) AS s";
    assert_eq!(struck.house.ground.sql(twice), "0", "an insight was raised more than once");
    let raised = struck.house.ground.sql("SELECT count(*) FROM insights WHERE superseded_by IS NOT NULL AND degraded_from = 'llm'");
    let low = struck.house.ground.sql("SELECT count(*) FROM insights WHERE superseded_by IS NULL AND degraded_from = 'llm'");
    println!("{raised} insights were raised when it was back");
    assert!(raised.parse::<u64>().unwrap() > 0 && low == "0", "{raised} raised, {low} are still low");
    struck.end();
}
