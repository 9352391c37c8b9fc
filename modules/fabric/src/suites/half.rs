//! Half of the calls in this process, half elsewhere, and every one that can be is shadowed.

use super::elsewhere::{Beyond, Elsewhere, FAR};
use crate::{
    connect::Health,
    local,
    route::{self as dial, BreakerLimits, Connect, Dials, Limits},
};
use async_trait::async_trait;
use contracts::{
    Audio, CallCx, CallError, Conversations, EventStream, Inference,
    inference::{Analyze, Insight, Summarize, SummaryItem, TierStatus},
    route::{Dial, Mode},
    testing::{FakeAudio, FakeConversations, FakeInference, Place},
};
use std::sync::Arc;

#[derive(Default)]
pub(super) struct HalfAndHalf<B>(pub(super) Elsewhere<B>);

fn dials() -> (Dials, dial::Place) {
    // These suites fail calls on purpose, more than a breaker would bear.
    let breaker = BreakerLimits { at_least: u32::MAX, ..BreakerLimits::default() };
    let dial = Dial { mode: Mode::Routed, remote_percent: 50, shadow_percent: 100, ..Dial::default() };
    (Dials::with_limits(Limits { breaker, ..Limits::default() }), dial::Place { dial, endpoints: vec![FAR.into()] })
}

/// The suites count what a module is asked, so shadows are answered by another one.
struct Unshadowed {
    module: FakeInference,
    shadow: FakeInference,
}

impl Unshadowed {
    fn for_call(&self, cx: &CallCx) -> &dyn Inference {
        if cx.shadow { &self.shadow } else { &self.module }
    }
}

#[async_trait]
impl Inference for Unshadowed {
    async fn analyze(&self, cx: CallCx, request: Analyze) -> Result<Vec<Insight>, CallError> {
        self.for_call(&cx).analyze(cx, request).await
    }
    async fn summarize(&self, cx: CallCx, request: Summarize) -> Result<EventStream<SummaryItem>, CallError> {
        self.for_call(&cx).summarize(cx, request).await
    }
    async fn tiers(&self, cx: CallCx) -> Result<Vec<TierStatus>, CallError> {
        self.for_call(&cx).tiers(cx).await
    }
}

#[async_trait]
impl<B: Beyond> Place for HalfAndHalf<B> {
    async fn audio(&self, fake: FakeAudio) -> Arc<dyn Audio> {
        let module: Arc<dyn Audio> = Arc::new(fake);
        let (remote, link) = self.0.of_audio(module.clone()).await;
        let (mut dials, place) = dials();
        let connect: Connect<dyn Audio> = Arc::new(move |_| Ok((remote.clone(), Health::over(link.clone()))));
        dials.audio(Some(local::audio(module)), &place, connect).expect("a link is always there")
    }
    async fn inference(&self, fake: FakeInference) -> Arc<dyn Inference> {
        let module: Arc<dyn Inference> = Arc::new(Unshadowed { module: fake, shadow: FakeInference::default() });
        let (remote, link) = self.0.of_inference(module.clone()).await;
        let (mut dials, place) = dials();
        let connect: Connect<dyn Inference> = Arc::new(move |_| Ok((remote.clone(), Health::over(link.clone()))));
        dials.inference(Some(local::inference(module)), &place, connect).expect("a link is always there")
    }
    async fn conversations(&self, fake: FakeConversations) -> Arc<dyn Conversations> {
        let module: Arc<dyn Conversations> = Arc::new(fake);
        let (remote, link) = self.0.of_conversations(module.clone()).await;
        let (mut dials, place) = dials();
        let connect: Connect<dyn Conversations> = Arc::new(move |_| Ok((remote.clone(), Health::over(link.clone()))));
        dials.conversations(Some(local::conversations(module)), &place, connect).expect("a link is always there")
    }
}
