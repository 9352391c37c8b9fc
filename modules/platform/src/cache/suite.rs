//! What every cache must pass. Each case gets a cache of its own from `make`; `pass` lets time go by.

use super::*;
use std::sync::Arc;

fn key() -> Key {
    Scope::new("tenant", "conv_1").part("row")
}

fn value(ver: u64, body: &str) -> NewValue {
    let stamp = Stamp { ver, mark: Mark { timeline: 1, at: ver * 10 } };
    NewValue { stamp, body: Some(Bytes::copy_from_slice(body.as_bytes())), took: Duration::ZERO, ttl: TTL }
}

async fn lease(cache: &impl Cache, key: &Key) -> Lease {
    match cache.look(key, None).await.unwrap() {
        Look::Fill { lease, .. } => lease,
        other => panic!("expected the lease: {other:?}"),
    }
}

async fn fresh(cache: &impl Cache, key: &Key) -> Option<Value> {
    match cache.look(key, None).await.unwrap() {
        Look::Fresh(value) => Some(value),
        Look::Fill { lease, .. } => {
            cache.release(key, lease).await.unwrap();
            None
        }
        Look::Wait { .. } => None,
    }
}

fn void(floor: u64) -> Vec<Void> {
    vec![Void { scope: key().scope, floor }]
}

/// For one case: one that hangs is a failure with a name.
const PATIENCE: Duration = Duration::from_secs(3_600);

pub async fn run<C: Cache>(make: impl AsyncFn() -> Arc<C>, pass: impl AsyncFn(Duration)) {
    macro_rules! cases {
        ($($case:ident $(($pass:ident))?),* $(,)?) => { $(
            let cache = make().await;
            let case = $case(&*cache $(, &$pass)?);
            tokio::time::timeout(PATIENCE, case).await.unwrap_or_else(|_| panic!("{} hangs", stringify!($case)));
        )* };
    }
    cases! {
        what_was_put_is_found_with_its_stamp_and_age(pass),
        one_fills_and_the_others_wait,
        a_lease_that_was_given_back_is_free,
        a_lease_ends_by_itself(pass),
        a_void_takes_the_value_and_the_lease,
        below_the_floor_nothing_is_kept,
        a_floor_only_rises_and_a_lower_void_changes_nothing,
        a_void_without_a_floor_leaves_the_floor,
        what_ends_is_stale_for_a_while_and_then_gone(pass),
        that_there_is_none_is_known_and_never_given_late(pass),
        what_is_older_than_asked_for_is_a_miss,
        parts_of_a_scope_go_together_and_scopes_and_tenants_apart,
        a_scope_does_not_grow_without_end,
        a_generation_rises_with_every_void_of_its_tenant,
        what_took_long_to_read_is_read_again_before_it_ends,
    }
}

async fn what_was_put_is_found_with_its_stamp_and_age(cache: &impl Cache, pass: &impl AsyncFn(Duration)) {
    let body = Bytes::from_static(b"a:b\n\0\xff:1:2:");
    let mut new = value(7, "");
    new.body = Some(body.clone());
    new.took = Duration::from_millis(40);
    assert_eq!(cache.put(&key(), lease(cache, &key()).await, new.clone()).await.unwrap(), Put::Kept);
    pass(Duration::from_millis(100)).await;
    let found = fresh(cache, &key()).await.expect("it is there");
    assert_eq!((found.stamp, found.body), (new.stamp, Some(body)));
    assert!((Duration::from_millis(139)..Duration::from_secs(20)).contains(&found.age), "its age counts from the read: {:?}", found.age);
    assert!(found.left <= TTL && found.left > TTL - Duration::from_secs(20), "{:?}", found.left);
}

async fn one_fills_and_the_others_wait(cache: &impl Cache) {
    let held = lease(cache, &key()).await;
    for _ in 0..10 {
        assert!(matches!(cache.look(&key(), None).await.unwrap(), Look::Wait { stale: None }));
    }
    assert_eq!(cache.put(&key(), Lease(1), value(1, "made up")).await.unwrap(), Put::LeaseVoid);
    assert_eq!(cache.put(&key(), held, value(1, "x")).await.unwrap(), Put::Kept);
    assert_eq!(cache.put(&key(), held, value(2, "again")).await.unwrap(), Put::LeaseVoid, "a lease fills once");
    assert_eq!(fresh(cache, &key()).await.unwrap().body, Some("x".into()));
}

async fn a_lease_that_was_given_back_is_free(cache: &impl Cache) {
    let held = lease(cache, &key()).await;
    cache.release(&key(), Lease(1)).await.unwrap();
    assert!(matches!(cache.look(&key(), None).await.unwrap(), Look::Wait { .. }), "only its holder gives it back");
    cache.release(&key(), held).await.unwrap();
    let next = lease(cache, &key()).await;
    assert_eq!(cache.put(&key(), held, value(1, "x")).await.unwrap(), Put::LeaseVoid);
    assert_eq!(cache.put(&key(), next, value(1, "x")).await.unwrap(), Put::Kept);
}

async fn a_lease_ends_by_itself(cache: &impl Cache, pass: &impl AsyncFn(Duration)) {
    let slow = lease(cache, &key()).await;
    pass(LEASE + Duration::from_millis(10)).await;
    assert_eq!(cache.put(&key(), slow, value(1, "late")).await.unwrap(), Put::LeaseVoid);
    assert_eq!(cache.put(&key(), lease(cache, &key()).await, value(1, "x")).await.unwrap(), Put::Kept);
}

async fn a_void_takes_the_value_and_the_lease(cache: &impl Cache) {
    cache.put(&key(), lease(cache, &key()).await, value(1, "old")).await.unwrap();
    cache.void(&void(2)).await.unwrap();
    let slow = lease(cache, &key()).await;
    cache.void(&void(3)).await.unwrap();
    assert_eq!(cache.put(&key(), slow, value(9, "read before the void")).await.unwrap(), Put::LeaseVoid);
    assert!(fresh(cache, &key()).await.is_none());
}

async fn below_the_floor_nothing_is_kept(cache: &impl Cache) {
    cache.void(&void(5)).await.unwrap();
    assert_eq!(cache.put(&key(), lease(cache, &key()).await, value(4, "of a replica that lags")).await.unwrap(), Put::TooOld);
    assert!(fresh(cache, &key()).await.is_none());
    assert_eq!(cache.put(&key(), lease(cache, &key()).await, value(5, "x")).await.unwrap(), Put::Kept);
}

async fn a_floor_only_rises_and_a_lower_void_changes_nothing(cache: &impl Cache) {
    cache.void(&void(5)).await.unwrap();
    cache.put(&key(), lease(cache, &key()).await, value(5, "x")).await.unwrap();
    let generation = cache.generation("tenant").await.unwrap();
    for floor in [5, 3] {
        cache.void(&void(floor)).await.unwrap(); // every process announces every change
    }
    assert_eq!(fresh(cache, &key()).await.expect("it stays").body, Some("x".into()));
    assert_eq!(cache.generation("tenant").await.unwrap(), generation);
    cache.void(&void(6)).await.unwrap();
    assert_eq!(cache.put(&key(), lease(cache, &key()).await, value(5, "y")).await.unwrap(), Put::TooOld);
}

async fn a_void_without_a_floor_leaves_the_floor(cache: &impl Cache) {
    cache.void(&void(5)).await.unwrap();
    cache.put(&key(), lease(cache, &key()).await, value(5, "x")).await.unwrap();
    let held = Scope::new("tenant", "conv_1").part("other");
    let slow = lease(cache, &held).await;
    cache.void(&void(0)).await.unwrap();
    assert!(fresh(cache, &key()).await.is_none());
    assert_eq!(cache.put(&held, slow, value(9, "y")).await.unwrap(), Put::LeaseVoid);
    assert_eq!(cache.put(&key(), lease(cache, &key()).await, value(4, "x")).await.unwrap(), Put::TooOld);
    assert_eq!(cache.put(&key(), lease(cache, &key()).await, value(5, "x")).await.unwrap(), Put::Kept);
}

async fn what_ends_is_stale_for_a_while_and_then_gone(cache: &impl Cache, pass: &impl AsyncFn(Duration)) {
    let short = NewValue { ttl: Duration::from_millis(50), ..value(1, "x") };
    cache.put(&key(), lease(cache, &key()).await, short).await.unwrap();
    pass(Duration::from_millis(60)).await;
    let Look::Fill { lease: held, stale: Some(stale) } = cache.look(&key(), None).await.unwrap() else { panic!("it can be given still") };
    assert_eq!((stale.body, stale.left), (Some("x".into()), Duration::ZERO));
    assert!((Duration::from_millis(9)..Duration::from_secs(20)).contains(&stale.over), "it has ended a moment ago: {:?}", stale.over);
    let Look::Wait { stale: Some(_) } = cache.look(&key(), None).await.unwrap() else { panic!("to others as well") };
    pass(STALE_WINDOW).await;
    let Look::Fill { stale: None, .. } = cache.look(&key(), None).await.unwrap() else { panic!("it is too old, and so is the lease") };
    assert_eq!(cache.put(&key(), held, value(1, "y")).await.unwrap(), Put::LeaseVoid);
}

async fn that_there_is_none_is_known_and_never_given_late(cache: &impl Cache, pass: &impl AsyncFn(Duration)) {
    let none = NewValue { body: None, ttl: Duration::from_millis(50), ..value(1, "") };
    cache.put(&key(), lease(cache, &key()).await, none).await.unwrap();
    assert_eq!(fresh(cache, &key()).await.expect("that much is known").body, None);
    pass(Duration::from_millis(60)).await;
    assert!(matches!(cache.look(&key(), None).await.unwrap(), Look::Fill { stale: None, .. }));
}

async fn what_is_older_than_asked_for_is_a_miss(cache: &impl Cache) {
    cache.put(&key(), lease(cache, &key()).await, value(5, "x")).await.unwrap(); // its place is 50 on timeline 1
    let at = |timeline, at| Some(Mark { timeline, at });
    assert!(matches!(cache.look(&key(), at(1, 50)).await.unwrap(), Look::Fresh(_)));
    for asked in [at(1, 51), at(2, 50), at(0, 50)] {
        let Look::Fill { lease, stale: None } = cache.look(&key(), asked).await.unwrap() else { panic!("{asked:?} is not covered") };
        cache.release(&key(), lease).await.unwrap();
    }
    assert!(fresh(cache, &key()).await.is_some(), "who asks for less still has it");
}

async fn parts_of_a_scope_go_together_and_scopes_and_tenants_apart(cache: &impl Cache) {
    let keys = [
        Scope::new("tenant", "conv_1").part("row"),
        Scope::new("tenant", "conv_1").part("insights"),
        Scope::new("tenant", "conv_2").part("row"),
        Scope::new("other", "conv_1").part("row"),
    ];
    for key in &keys {
        cache.put(key, lease(cache, key).await, value(1, &key.part)).await.unwrap();
    }
    cache.void(&void(2)).await.unwrap();
    let mut there = vec![];
    for key in &keys {
        there.push(fresh(cache, key).await.is_some());
    }
    assert_eq!(there, [false, false, true, true]);
}

async fn a_scope_does_not_grow_without_end(cache: &impl Cache) {
    let mut kept = 0;
    for n in 0..MOST_PARTS + 50 {
        let key = Scope::new("tenant", "conv_1").part(n.to_string());
        let put = cache.put(&key, lease(cache, &key).await, value(1, "x")).await.unwrap();
        assert!(matches!(put, Put::Kept | Put::Full), "{n}: {put:?}");
        kept += usize::from(put == Put::Kept);
    }
    assert!((MOST_PARTS - 1..=MOST_PARTS).contains(&kept), "{kept}");
}

async fn a_generation_rises_with_every_void_of_its_tenant(cache: &impl Cache) {
    let before = cache.generation("tenant").await.unwrap();
    let other = cache.generation("other").await.unwrap();
    cache.void(&[void(1), void(2), void(0)].concat()).await.unwrap();
    assert_eq!(cache.generation("tenant").await.unwrap(), before + 3);
    assert_eq!(cache.generation("other").await.unwrap(), other);
}

/// With 60 s of reading and 40 s left, one in two finds that it should begin.
async fn what_took_long_to_read_is_read_again_before_it_ends(cache: &impl Cache) {
    let slow = NewValue { took: Duration::from_secs(60), ttl: Duration::from_secs(40), ..value(1, "x") };
    cache.put(&key(), lease(cache, &key()).await, slow).await.unwrap();
    let (mut early, mut given) = (0, 0);
    for _ in 0..200 {
        match cache.look(&key(), None).await.unwrap() {
            Look::Fresh(_) => given += 1,
            Look::Fill { lease, stale: Some(value) } => {
                assert!(
                    !value.left.is_zero() && matches!(cache.look(&key(), None).await.unwrap(), Look::Fresh(_)),
                    "others are not held up"
                );
                cache.release(&key(), lease).await.unwrap();
                early += 1;
            }
            other => panic!("{other:?}"),
        }
    }
    assert!(early > 20 && given > 20, "{early} began, {given} did not");
}
