//! How well turns are understood: the demo calls' scripts and the turns written apart, by the classifier and by rules alone. The calls
//! made up for tuning come first, and only there `--wrong` shows what went wrong: nobody tunes on the others.
//!
//! `cargo run --release -p inference --example accuracy [-- --wrong]`

#[path = "../tests/support/mod.rs"]
mod support;

use contracts::inference::Task;
use support::{Fit, Labelled, answers, calls, intent_of, local, rules, sentiment_of, tuning, turns};

#[tokio::main]
async fn main() {
    let show_wrong = std::env::args().any(|a| a == "--wrong");
    let talk = |calls: Vec<(String, Vec<Labelled>)>| calls.into_iter().map(|(_, turns)| turns).collect::<Vec<_>>();
    let apart = turns().into_iter().map(|turn| vec![turn]).collect();
    let sets = [("tuning calls", talk(tuning())), ("demo calls", talk(calls())), ("turns apart", apart)];
    let local = local().await;
    let rules = rules();
    for (tier, inference) in local.iter().map(|l| ("local", l)).chain([("rules", &rules)]) {
        for (name, calls) in &sets {
            for task in Task::ALL {
                let mut insights = vec![];
                for turns in calls {
                    insights.extend(answers(inference, task, turns).await);
                }
                let truth = if task == Task::Intent { intent_of } else { sentiment_of };
                let fit = Fit::of(&calls.concat(), &insights, truth);
                println!("{tier:<6} {:<10} {name:<13} {}", task.name(), fit.row());
                if show_wrong && *name == "tuning calls" {
                    fit.wrong.iter().for_each(|w| println!("         {w}"));
                }
            }
        }
    }
}
