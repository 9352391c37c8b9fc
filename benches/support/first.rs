//! What a competent team writes first: the same models and the same decode loop behind the same contract, but a detector session per
//! connection, the whole utterance written again every 500 ms, a blocking pool, nothing coalesced, nothing on a guess. Only for comparison.

use audio::engine::{
    decode,
    endpointing::{Decision, Endpointer, Rules},
    recognizer::{Moonshine, words},
    resample::Resampler,
    vad::{FRAME, Memory, Vad},
};
use contracts::{
    Audio, CallCx, CallError, SamplePos,
    audio::{
        CREDIT, EventTx, HeardSegment, Input, ModelInfo, SegmentBody, Session, SessionInfo, SpeechEvent, Spoken, StreamSpec, WordTimes,
    },
};
use platform::onnx::{Kind, ModelDir, Runtime};
use std::{path::Path, sync::Arc};
use tokio::sync::{Semaphore, mpsc};

const EVERY: u64 = 16 * 500;

pub struct First {
    runtime: Runtime,
    vad: ModelDir,
    pool: Arc<Pool>,
}

/// One recognizer per core, taken by whoever comes first.
struct Pool {
    free: Semaphore,
    recognizers: std::sync::Mutex<Vec<Moonshine>>,
}

impl Pool {
    async fn transcribe(self: &Arc<Self>, pcm: Vec<f32>) -> audio::engine::recognizer::Transcript {
        let permit = self.free.acquire().await.expect("the pool is never closed");
        let pool = self.clone();
        let done = tokio::task::spawn_blocking(move || {
            let mut recognizer = pool.recognizers.lock().expect("no panic").pop().expect("a permit is a recognizer");
            let text = recognizer.transcribe(&pcm).expect("the model runs");
            pool.recognizers.lock().expect("no panic").push(recognizer);
            text
        });
        let text = done.await.expect("no panic");
        drop(permit);
        text
    }
}

impl First {
    pub fn start(models: &Path, workers: usize) -> Self {
        let runtime = Runtime::load(models).expect("`make models` has run");
        let recognizer = ModelDir::open(&models.join("moonshine-tiny-en"), Kind::Recognizer).expect("a recognizer");
        let vad = ModelDir::open(&models.join("silero-vad"), Kind::Vad).expect("a detector");
        let recognizers = (0..workers).map(|_| Moonshine::open(&runtime, &recognizer).expect("the recognizer loads")).collect();
        Self { runtime, vad, pool: Arc::new(Pool { free: Semaphore::new(workers), recognizers: std::sync::Mutex::new(recognizers) }) }
    }
}

#[async_trait::async_trait]
impl Audio for First {
    async fn open(&self, _cx: CallCx, spec: StreamSpec) -> Result<Session, CallError> {
        let (inputs, inbox) = mpsc::unbounded_channel();
        let model = ModelInfo { name: "first".into(), version: "0".into(), family: "moonshine".into() };
        let sink = move |input| drop(inputs.send(input));
        let (session, events) = Session::pair(&spec, SessionInfo { model, credit: CREDIT }, Arc::new(sink));
        let vad = Vad::open(&self.runtime, &self.vad).map_err(|e| CallError::internal(e.to_string()))?;
        tokio::spawn(listen(spec, inbox, events, vad, self.pool.clone()));
        Ok(session)
    }
}

async fn listen(spec: StreamSpec, mut inbox: mpsc::UnboundedReceiver<Input>, events: EventTx, mut vad: Vad, pool: Arc<Pool>) {
    let rate = u64::from(spec.rate.hz());
    let native = |at: u64| SamplePos(spec.start.0 + at * rate / 16_000);
    let rules = Rules {
        enter: 0.5,
        exit: 0.35,
        min_speech: 16 * 100,
        silence: Rules::silence_of(spec.endpointing),
        speculate: None,
        pre_roll: 16 * 300,
        soft_cut: 16 * 12_000,
        hard_cut: 16 * 12_000,
        pauses: vec![],
    };
    let (mut ends, mut memory) = (Endpointer::new(rules), Memory::default());
    let mut resampler = Resampler::new(spec.rate.hz()).expect("the rate has been checked");
    let (mut pcm, mut scored, mut decided, mut seq, mut rev) = (Vec::<f32>::new(), 0u64, 0u64, spec.first_seq, 0);
    let mut open: Option<(u64, u64)> = None;
    let mut decoded = vec![];
    loop {
        let input = inbox.recv().await;
        let over = match input {
            Some(Input::Frame(frame)) => {
                decoded.clear();
                decode::samples(spec.encoding, &frame.data, &mut decoded);
                resampler.push(&decoded, &mut pcm).expect("resampling does not fail");
                events.consumed(frame.data.len());
                false
            }
            Some(Input::Finish) => {
                resampler.flush(&mut pcm).expect("resampling does not fail");
                true
            }
            Some(Input::Abandon) | None => return events.end(),
            Some(_) => continue,
        };
        let mut decisions = vec![];
        while pcm.len() as u64 - scored >= FRAME as u64 {
            let frame = &pcm[scored as usize..scored as usize + FRAME];
            decisions.extend(ends.push(vad.score(&mut memory, frame).expect("the detector runs")));
            scored += FRAME as u64;
        }
        if over {
            decisions.extend(ends.close(pcm.len() as u64));
        }
        for decision in decisions {
            let (to, body) = match decision {
                Decision::Started { from, .. } => {
                    open = Some((from, scored));
                    continue;
                }
                Decision::Silence { to } => (to, SegmentBody::Silence),
                Decision::Speech(stretch) => {
                    open = None;
                    let heard = pool.transcribe(pcm[stretch.from as usize..stretch.to as usize].to_vec()).await;
                    let voiced: Vec<_> = stretch.voiced.iter().map(|v| (v.start / 16, v.end / 16)).collect();
                    let body = Spoken {
                        words: words::spread(&heard.words, &voiced, 0),
                        from: native(stretch.voiced.first().map_or(stretch.from, |v| v.start)),
                        to: native(stretch.voiced.last().map_or(stretch.to, |v| v.end)),
                        confidence: heard.confidence,
                        speech_final: stretch.speech_final,
                        word_times: WordTimes::Estimated,
                        model: "first".into(),
                        decode_ms: 0,
                    };
                    (stretch.to, SegmentBody::Speech(body))
                }
                Decision::Paused { .. } | Decision::Resumed => continue,
            };
            events.send(SpeechEvent::Segment(HeardSegment { seq, start: native(decided), end: native(to), body }));
            (decided, seq, rev) = (to, seq + 1, 0);
        }
        if let Some((from, told)) = &mut open
            && spec.partials.is_some()
            && scored - *told >= EVERY
        {
            *told += EVERY; // each is written, however late it is
            let heard = pool.transcribe(pcm[*from as usize..scored as usize].to_vec()).await;
            let words = words::spread(&heard.words, &[(*from / 16, scored / 16)], 0);
            rev += 1;
            events.send(SpeechEvent::Partial { seq, rev, start: native(*from), end: native(scored), words, stable_words: 0 });
        }
        if over {
            return events.end();
        }
    }
}

/// Serves it where a process of the product would serve its engine, until the process is killed.
pub async fn serve(models: &Path, socket: &str) {
    let services = fabric::Services { audio: Some(Arc::new(First::start(models, 2))), inference: None, conversations: None };
    let server = fabric::serve(socket, services).await.expect("a Unix socket in a scratch folder");
    server.run(tokio_util::sync::CancellationToken::new()).await.expect("the socket stays");
}
