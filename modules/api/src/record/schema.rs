//! The tables as diesel knows them; what they mean stands in `migrations/`.

use diesel::{allow_tables_to_appear_in_same_query, table};

table! {
    conversations (tenant_id, id) {
        tenant_id -> Text,
        id -> Text,
        external_id -> Nullable<Text>,
        title -> Nullable<Text>,
        source -> Text,
        language -> Text,
        tags -> Json,
        state -> Text,
        started_at -> Timestamp,
        ended_at -> Nullable<Timestamp>,
        intent -> Nullable<Text>,
        intent_score -> Nullable<Double>,
        intent_tier -> Nullable<Text>,
        sentiment -> Nullable<Text>,
        sentiment_score -> Nullable<Double>,
        sentiment_tier -> Nullable<Text>,
        created_at -> Timestamp,
        updated_at -> Timestamp,
        version -> BigInt,
        finalization -> Nullable<Text>,
    }
}

table! {
    conversation_tags (tenant_id, tag, conversation_id) {
        tenant_id -> Text,
        tag -> Text,
        conversation_id -> Text,
    }
}

table! {
    channels (tenant_id, conversation_id, channel) {
        tenant_id -> Text,
        conversation_id -> Text,
        channel -> BigInt,
        role -> Text,
        encoding -> Text,
        rate -> BigInt,
        epoch -> BigInt,
        next_seq -> BigInt,
        safe_pos -> BigInt,
        utterances -> BigInt,
        created_at -> Timestamp,
        updated_at -> Timestamp,
        version -> BigInt,
        closed_pos -> Nullable<BigInt>,
    }
}

table! {
    segments (row_id) {
        row_id -> BigInt,
        tenant_id -> Text,
        conversation_id -> Text,
        channel -> BigInt,
        epoch -> BigInt,
        seq -> BigInt,
        utterance_id -> Text,
        kind -> Text,
        start_pos -> BigInt,
        end_pos -> BigInt,
        start_ms -> BigInt,
        end_ms -> BigInt,
        text -> Text,
        words -> Json,
        confidence -> Double,
        speech_final -> Bool,
        word_times -> Text,
        model -> Text,
        decode_ms -> BigInt,
        reason -> Nullable<Text>,
        trace_id -> Text,
        created_at -> Timestamp,
    }
}

table! {
    analysis_runs (tenant_id, id) {
        tenant_id -> Text,
        id -> Text,
        conversation_id -> Text,
        task -> Text,
        trigger -> Text,
        model -> Text,
        config_hash -> Text,
        created_at -> Timestamp,
    }
}

table! {
    insights (tenant_id, id) {
        tenant_id -> Text,
        id -> Text,
        run_id -> Text,
        conversation_id -> Text,
        utterance_id -> Text,
        task -> Text,
        role -> Nullable<Text>,
        start_ms -> Nullable<BigInt>,
        label -> Nullable<Text>,
        score -> Nullable<Double>,
        labels -> Json,
        abstained -> Nullable<Text>,
        evidence -> Json,
        tier -> Text,
        model -> Text,
        degraded_from -> Nullable<Text>,
        config_hash -> Text,
        latency_ms -> BigInt,
        prompt -> Nullable<Text>,
        late -> Bool,
        superseded_by -> Nullable<Text>,
        created_at -> Timestamp,
    }
}

table! {
    outbox (id) {
        id -> BigInt,
        tenant_id -> Text,
        conversation_id -> Text,
        kind -> Text,
        subject -> Text,
        created_at -> Timestamp,
    }
}

table! {
    bookkeeping (tenant_id, name) {
        tenant_id -> Text,
        name -> Text,
        value -> BigInt,
        updated_at -> Timestamp,
    }
}

table! {
    dead_letters (tenant_id, id) {
        tenant_id -> Text,
        id -> Text,
        stream -> Text,
        entry_key -> Text,
        payload -> Binary,
        error -> Text,
        attempts -> BigInt,
        trace -> Text,
        version -> Text,
        died_at -> Timestamp,
        replayed_at -> Nullable<Timestamp>,
    }
}

table! {
    finalize (tenant_id, conversation_id, step) {
        tenant_id -> Text,
        conversation_id -> Text,
        step -> Text,
        attempt -> BigInt,
        next_at -> Nullable<Timestamp>,
        fence -> BigInt,
        input_hash -> Text,
        payload -> Json,
        outcome -> Nullable<Text>,
        created_at -> Timestamp,
        updated_at -> Timestamp,
    }
}

table! {
    results (tenant_id, conversation_id) {
        tenant_id -> Text,
        conversation_id -> Text,
        version -> BigInt,
        quality -> Text,
        summary -> Json,
        input_hash -> Text,
        created_at -> Timestamp,
        updated_at -> Timestamp,
    }
}

allow_tables_to_appear_in_same_query!(conversations, conversation_tags, channels, segments, insights, outbox);

/// Segments with the channel they were heard on; a macro, because the type of a joined query has no name.
macro_rules! heard_segments {
    () => {
        segments::table.inner_join(
            channels::table.on(channels::tenant_id
                .eq(segments::tenant_id)
                .and(channels::conversation_id.eq(segments::conversation_id))
                .and(channels::channel.eq(segments::channel))),
        )
    };
}
pub(super) use heard_segments;
