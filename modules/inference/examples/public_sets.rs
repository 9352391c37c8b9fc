//! How the classifier does on public labelled sets, against the floors of a plain n-gram model: Banking77 with 5, 10 and all examples
//! per intent, CLINC150 with its questions that fit no intent. Embedding and head only: these sets come without patterns.
//!
//! `cargo run --release -p inference --example public_sets [-- DATA]`; without DATA it looks for `../shared/data` beside the repository.

#![allow(clippy::unwrap_used)] // a measurement that cannot be made should stop

#[path = "../tests/support/mod.rs"]
mod support;

use inference::classifier::{Embedder, Head};
use ndarray::{Array2, Axis};
use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    time::Instant,
};

fn main() {
    let data = std::env::args().nth(1).map_or_else(|| support::repository().join("../shared/data"), PathBuf::from);
    let Some(models) = support::models() else { return eprintln!("SKIPPED: no models on disk; `make models` fetches them") };
    if !data.join("banking77").is_dir() {
        return eprintln!("SKIPPED: no public sets in {}", data.display());
    }
    let mut embedder = Embedder::load(&support::runtime(&models), &models.join("minilm-l6-v2")).unwrap();
    banking(&mut embedder, &data.join("banking77"));
    clinc(&mut embedder, &data.join("clinc150/data_full.json"));
}

/// Vectors and the numbers of their labels.
struct Set {
    x: Array2<f32>,
    y: Vec<usize>,
}

impl Set {
    fn of(embedder: &mut Embedder, rows: &[(String, String)], numbers: &mut BTreeMap<String, usize>) -> Self {
        let texts: Vec<String> = rows.iter().map(|(text, _)| text.clone()).collect();
        let mut number = |label: &String| {
            let next = numbers.len();
            *numbers.entry(label.clone()).or_insert(next)
        };
        Self { y: rows.iter().map(|(_, label)| number(label)).collect(), x: embedder.embed(&texts).unwrap() }
    }

    /// `each` examples per label, other ones for each `draw`; all of them for `None`.
    fn draw(&self, each: Option<usize>, draw: u64) -> Self {
        let Some(each) = each else { return Self { x: self.x.clone(), y: self.y.clone() } };
        let mut order: Vec<usize> = (0..self.y.len()).collect();
        order.sort_by_key(|i| {
            (*i as u64 + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15 ^ draw.wrapping_mul(0xD1B5_4A32_D192_ED03)).rotate_left(31)
        });
        let mut taken: BTreeMap<usize, usize> = BTreeMap::new();
        order.retain(|i| {
            let n = taken.entry(self.y[*i]).or_default();
            *n += 1;
            *n <= each
        });
        Self { x: self.x.select(Axis(0), &order), y: order.iter().map(|i| self.y[*i]).collect() }
    }

    /// Best label and its probability, per row.
    fn told_by(&self, head: &Head) -> Vec<(usize, f32)> {
        let best = |p: Vec<f32>| p.into_iter().enumerate().max_by(|a, b| a.1.total_cmp(&b.1)).unwrap();
        self.x.axis_iter(Axis(0)).map(|row| best(head.probabilities(row))).collect()
    }
}

fn share(of: impl Iterator<Item = bool>) -> f64 {
    let all: Vec<bool> = of.collect();
    all.iter().filter(|b| **b).count() as f64 / all.len().max(1) as f64
}

/// Mean distance between how sure it was and how often it was right, in ten bands.
fn calibration_error(told: &[(usize, f32)], y: &[usize]) -> f64 {
    let mut bands = [(0.0, 0.0); 10];
    for ((label, p), truth) in told.iter().zip(y) {
        let band = &mut bands[((p * 10.0) as usize).min(9)];
        *band = (band.0 + f64::from(*p), band.1 + f64::from(u8::from(label == truth)));
    }
    bands.iter().map(|(sure, right)| (sure - right).abs()).sum::<f64>() / told.len() as f64
}

fn banking(embedder: &mut Embedder, folder: &Path) {
    let rows = |file: &str| csv(&fs::read_to_string(folder.join(file)).unwrap());
    let mut numbers = BTreeMap::new();
    let train = Set::of(embedder, &rows("train.csv"), &mut numbers);
    let test = Set::of(embedder, &rows("test.csv"), &mut numbers);
    for (each, draws, floor) in [(Some(5), 3, 0.638), (Some(10), 3, 0.749), (None, 1, 0.913)] {
        let begun = Instant::now();
        let (mut right, mut error) = (0.0, 0.0);
        for draw in 0..draws {
            let train = train.draw(each, draw);
            // Calibration fits five more times; for all examples that takes minutes and changes no label.
            let head = if each.is_some() {
                Head::fit(&train.x, &train.y, numbers.len())
            } else {
                Head::fit_plain(&train.x, &train.y, numbers.len())
            };
            let told = test.told_by(&head);
            right += share(told.iter().zip(&test.y).map(|((label, _), truth)| label == truth)) / draws as f64;
            error += calibration_error(&told, &test.y) / draws as f64;
        }
        let each = each.map_or("all".into(), |n| n.to_string());
        let took = begun.elapsed().as_secs_f64() / draws as f64;
        println!(
            "banking77  {each:>3} examples per intent  accuracy {right:.3} (floor {floor})  calibration error {error:.3}  fitted in {took:.1} s"
        );
    }
}

fn clinc(embedder: &mut Embedder, file: &Path) {
    let all: BTreeMap<String, Vec<(String, String)>> = serde_json::from_str(&fs::read_to_string(file).unwrap()).unwrap();
    let mut numbers = BTreeMap::new();
    let mut set = |name: &str| Set::of(embedder, &all[name], &mut numbers);
    let (train, validation, test) = (set("train"), set("val"), set("test"));
    let (outside_validation, outside) = (set("oos_val"), set("oos_test"));
    let intents = train.y.iter().max().unwrap() + 1;
    for each in [Some(10), None] {
        let train = train.draw(each, 0);
        let head = Head::fit_plain(&train.x, &train.y, intents);
        let told = test.told_by(&head);
        let accuracy = share(told.iter().zip(&test.y).map(|((label, _), truth)| label == truth));
        // The threshold comes from the validation split: right and kept for 0.89 of its questions.
        let mut sure: Vec<f32> =
            validation.told_by(&head).into_iter().zip(&validation.y).filter(|((l, _), y)| l == *y).map(|((_, p), _)| p).collect();
        sure.sort_by(|a, b| b.total_cmp(a));
        let threshold = sure[((0.89 * validation.y.len() as f64) as usize).min(sure.len() - 1)];
        let kept = share(told.iter().zip(&test.y).map(|((label, p), truth)| label == truth && *p >= threshold));
        let refused = share(outside.told_by(&head).into_iter().map(|(_, p)| p < threshold));
        let refused_validation = share(outside_validation.told_by(&head).into_iter().map(|(_, p)| p < threshold));
        let each = each.map_or("all".into(), |n| n.to_string());
        println!(
            "clinc150   {each:>3} examples per intent  accuracy {accuracy:.3} (floor 0.920, all)  below {threshold:.2}: refuses {refused:.3} of what fits no \
             intent (floor 0.86; validation {refused_validation:.3}), right and kept {kept:.3} (floor 0.89)"
        );
    }
}

/// `text,category` with a heading; a text with commas stands in double quotes.
fn csv(text: &str) -> Vec<(String, String)> {
    let (mut rows, mut row, mut field, mut quoted) = (vec![], vec![], String::new(), false);
    for c in text.chars().chain(['\n']) {
        match c {
            '"' => quoted = !quoted,
            ',' if !quoted => row.push(std::mem::take(&mut field)),
            '\n' if !quoted => {
                row.push(std::mem::take(&mut field).trim_end().to_owned());
                let mut fields = std::mem::take(&mut row).into_iter();
                if let (Some(text), Some(label)) = (fields.next(), fields.next()) {
                    rows.push((text.trim().to_owned(), label));
                }
            }
            c => field.push(c),
        }
    }
    rows.remove(0);
    rows
}
