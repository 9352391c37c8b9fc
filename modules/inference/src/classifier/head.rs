//! From a vector to a label: multinomial logistic regression, fitted at start from a handful of examples. Deterministic.
//!
//! Confidence is calibrated: one temperature, found on examples that were left out while fitting, makes "0.8" mean right four times of five.

use ndarray::{Array1, Array2, ArrayView1, Axis, s};

/// Strength of the pull towards zero, per example weight; found on public sets (see `examples/public_sets.rs`).
const PULL: f32 = 1.0 / 30.0;
const FOLDS: usize = 5;
const STEPS: usize = 200;
/// Steps remembered by L-BFGS.
const MEMORY: usize = 8;

#[derive(Clone, Debug)]
pub struct Head {
    /// Features + 1 (the last row is the offset) by labels.
    weights: Array2<f32>,
    temperature: f32,
}

impl Head {
    /// Fits and calibrates. `y[i]` is the label of row `i` of `x`.
    pub fn fit(x: &Array2<f32>, y: &[usize], labels: usize) -> Self {
        let weights = fit(x, y, labels);
        Self { weights, temperature: temperature(x, y, labels) }
    }

    /// Fits without calibration: confidences are those of the fit itself.
    pub fn fit_plain(x: &Array2<f32>, y: &[usize], labels: usize) -> Self {
        Self { weights: fit(x, y, labels), temperature: 1.0 }
    }

    pub fn temperature(&self) -> f32 {
        self.temperature
    }

    /// Probability of each label.
    pub fn probabilities(&self, x: ArrayView1<'_, f32>) -> Vec<f32> {
        let features = x.len();
        let logits = x.dot(&self.weights.slice(s![..features, ..])) + self.weights.row(features);
        softmax(&(logits / self.temperature))
    }
}

fn softmax(logits: &Array1<f32>) -> Vec<f32> {
    let most = logits.iter().copied().fold(f32::MIN, f32::max);
    let exp: Vec<f32> = logits.iter().map(|z| (z - most).exp()).collect();
    let sum: f32 = exp.iter().sum();
    exp.into_iter().map(|e| e / sum).collect()
}

/// Examples of a label with many of them weigh less each, so that no label wins by number.
fn balance(y: &[usize], labels: usize) -> Vec<f32> {
    let mut counts = vec![0usize; labels];
    for label in y {
        counts[*label] += 1;
    }
    let present = counts.iter().filter(|n| **n > 0).count().max(1);
    y.iter().map(|label| y.len() as f32 / (present * counts[*label]) as f32).collect()
}

fn fit(x: &Array2<f32>, y: &[usize], labels: usize) -> Array2<f32> {
    let (rows, features) = x.dim();
    let mut with_offset = Array2::ones((rows, features + 1));
    with_offset.slice_mut(s![.., ..features]).assign(x);
    let balance = balance(y, labels);
    let transposed = with_offset.t().as_standard_layout().to_owned();
    let loss = |w: &Array2<f32>| {
        let mut residual = with_offset.dot(w);
        let mut value = 0.0f64;
        for ((mut row, label), weight) in residual.axis_iter_mut(Axis(0)).zip(y).zip(&balance) {
            let most = row.iter().copied().fold(f32::MIN, f32::max);
            let sum: f32 = row.iter().map(|z| (z - most).exp()).sum();
            value -= f64::from(weight * (row[*label] - most - sum.ln()));
            row.mapv_inplace(|z| weight * ((z - most).exp() / sum));
            row[*label] -= weight;
        }
        let mut gradient = transposed.dot(&residual);
        let pulled = w.slice(s![..features, ..]);
        value += 0.5 * f64::from(PULL) * pulled.iter().map(|v| f64::from(v * v)).sum::<f64>();
        gradient.slice_mut(s![..features, ..]).scaled_add(PULL, &pulled);
        (value, gradient)
    };
    descend(Array2::zeros((features + 1, labels)), loss)
}

/// L-BFGS with a backtracking line search. The loss is convex, so there is one place to arrive at.
fn descend(mut at: Array2<f32>, loss: impl Fn(&Array2<f32>) -> (f64, Array2<f32>)) -> Array2<f32> {
    let dot = |a: &Array2<f32>, b: &Array2<f32>| a.iter().zip(b).map(|(a, b)| f64::from(a * b)).sum::<f64>();
    let (mut value, mut gradient) = loss(&at);
    let mut history: Vec<(Array2<f32>, Array2<f32>, f64)> = vec![];
    for _ in 0..STEPS {
        let mut direction = gradient.clone();
        let mut alphas = vec![];
        for (step, change, rho) in history.iter().rev() {
            let alpha = rho * dot(step, &direction);
            direction.scaled_add(-alpha as f32, change);
            alphas.push(alpha);
        }
        if let Some((step, change, _)) = history.last() {
            direction *= (dot(step, change) / dot(change, change)) as f32;
        }
        for ((step, change, rho), alpha) in history.iter().zip(alphas.into_iter().rev()) {
            let beta = rho * dot(change, &direction);
            direction.scaled_add((alpha - beta) as f32, step);
        }
        let slope = -dot(&gradient, &direction);
        let mut length = if history.is_empty() { (1.0 / dot(&gradient, &gradient).sqrt().max(1e-12)).min(1.0) } else { 1.0 };
        let accepted = (0..20).find_map(|_| {
            let next = &at - &(&direction * length as f32);
            let (next_value, next_gradient) = loss(&next);
            let enough = next_value <= value + 1e-4 * length * slope;
            length *= 0.5;
            enough.then_some((next, next_value, next_gradient))
        });
        let Some((next, next_value, next_gradient)) = accepted else { break };
        let (step, change) = (&next - &at, &next_gradient - &gradient);
        let curvature = dot(&step, &change);
        if curvature > 1e-10 {
            history.push((step, change, 1.0 / curvature));
            if history.len() > MEMORY {
                history.remove(0);
            }
        }
        let gained = value - next_value;
        (at, value, gradient) = (next, next_value, next_gradient);
        if gained < 1e-4 * value.abs().max(1.0) {
            break;
        }
    }
    at
}

/// The temperature under which examples left out of the fit are least surprising.
fn temperature(x: &Array2<f32>, y: &[usize], labels: usize) -> f32 {
    let mut seen = vec![0usize; labels];
    let folds: Vec<usize> = y
        .iter()
        .map(|label| {
            seen[*label] += 1;
            (seen[*label] - 1) % FOLDS
        })
        .collect();
    let mut left_out: Vec<(Array1<f32>, usize, f32)> = vec![];
    let balance = balance(y, labels);
    for fold in 0..FOLDS {
        let kept: Vec<usize> = (0..y.len()).filter(|i| folds[*i] != fold).collect();
        let weights = fit(&x.select(Axis(0), &kept), &kept.iter().map(|i| y[*i]).collect::<Vec<_>>(), labels);
        for i in (0..y.len()).filter(|i| folds[*i] == fold) {
            let logits = x.row(i).dot(&weights.slice(s![..x.ncols(), ..])) + weights.row(x.ncols());
            left_out.push((logits, y[i], balance[i]));
        }
    }
    let surprise =
        |t: f32| -> f32 { left_out.iter().map(|(logits, label, weight)| -weight * softmax(&(logits / t))[*label].max(1e-9).ln()).sum() };
    let candidates = (0..=40).map(|i| 0.25 * 1.08f32.powi(i)); // 0.25 to 5.4
    candidates.min_by(|a, b| surprise(*a).total_cmp(&surprise(*b))).unwrap_or(1.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two clouds around (1, 0) and (0, 1) with one of eleven points on the wrong side.
    fn clouds() -> (Array2<f32>, Vec<usize>) {
        let mut y = vec![];
        let x = Array2::from_shape_fn((200, 2), |(i, j)| {
            let label = i % 2;
            if j == 0 {
                y.push(label);
            }
            let side = if (i / 2) % 11 == 0 { 1 - label } else { label };
            let noise = ((i * 37 + j * 11) % 17) as f32 / 17.0 - 0.5;
            if side == j { 1.0 + noise } else { noise }
        });
        (x, y)
    }

    #[test]
    fn it_learns_and_knows_how_sure_it_may_be() {
        let (x, y) = clouds();
        let head = Head::fit(&x, &y, 2);
        let p = head.probabilities(ndarray::arr1(&[1.2, 0.0]).view());
        assert!(p[0] > 0.7 && p[0] < 0.99, "one in eleven is wrong, so it is never certain: {p:?}");
        assert!((p.iter().sum::<f32>() - 1.0).abs() < 1e-5);
    }

    #[test]
    fn the_same_examples_give_the_same_weights() {
        let (x, y) = clouds();
        assert_eq!(Head::fit(&x, &y, 2).weights, Head::fit(&x, &y, 2).weights);
    }

    #[test]
    fn the_descent_arrives() {
        let target = Array2::from_shape_fn((3, 2), |(i, j)| (i + 2 * j) as f32);
        let found = descend(Array2::zeros((3, 2)), |w| {
            let away = w - &target;
            (away.iter().map(|v| f64::from(v * v)).sum::<f64>() / 2.0, away)
        });
        assert!((&found - &target).iter().all(|v| v.abs() < 0.05), "{found:?}");
    }
}
