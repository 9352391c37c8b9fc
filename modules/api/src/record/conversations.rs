//! Conversations and their channels: opened, attached to, closed, listed.
//!
//! Invariants:
//! - opening is idempotent by id; an external id belongs to one conversation of its tenant;
//! - attaching raises a channel's epoch, as does closing once everything received is committed, so whoever held the older one is fenced off
//!   by the commit rule alone.

use super::{
    ConversationFilter, Finalization, Page,
    commit::rate_of,
    cursor::{Cut, Key},
    finalize,
    rows::{ChannelRow, ConversationRow, TopLabel},
    schema::{channels, conversation_tags, conversations, outbox},
    store::{Conn, StoreError, on_conn},
    writer::Effects,
};
use chrono::{DateTime, NaiveDateTime, Utc};
use contracts::{
    CallError, ChannelIndex, ConversationId, Encoding, Epoch, SamplePos, TenantId,
    audio::{ChannelSpec, Role},
    conversation::{Attach, Attached, ChannelView, Close, Conversation, ConversationState, HeardTo, OpenConversation},
    inference::Tier,
};
use diesel::{
    BoolExpressionMethods as _, ExpressionMethods as _, OptionalExtension as _, QueryDsl as _, Queryable, RunQueryDsl as _, Selectable,
    SelectableHelper as _, dsl::sql, sql_types::BigInt,
};
use std::collections::HashMap;

/// Of a caller's own words: id, title, tag, source, language.
const LONGEST_TEXT: usize = 1_000;
const MOST_TAGS: usize = 32;

#[derive(Clone, Debug, Queryable, Selectable)]
#[diesel(table_name = conversations)]
pub(super) struct ConversationEntry {
    pub(super) tenant_id: String,
    pub(super) id: String,
    external_id: Option<String>,
    title: Option<String>,
    source: String,
    language: String,
    tags: serde_json::Value,
    state: String,
    started_at: NaiveDateTime,
    ended_at: Option<NaiveDateTime>,
    intent: Option<String>,
    intent_score: Option<f64>,
    intent_tier: Option<String>,
    sentiment: Option<String>,
    sentiment_score: Option<f64>,
    sentiment_tier: Option<String>,
    finalization: Option<String>,
}

#[derive(Clone, Debug, Queryable, Selectable)]
#[diesel(table_name = channels)]
pub(super) struct ChannelEntry {
    conversation_id: String,
    pub(super) channel: i64,
    role: String,
    encoding: String,
    rate: i64,
    epoch: i64,
    next_seq: i64,
    safe_pos: i64,
    utterances: i64,
}

impl ConversationEntry {
    pub(super) fn conversation(&self) -> Result<Conversation, StoreError> {
        Ok(Conversation {
            tenant: TenantId::new(&self.tenant_id),
            id: id_of(&self.id)?,
            external_id: self.external_id.clone(),
            title: self.title.clone(),
            source: self.source.clone(),
            language: self.language.clone(),
            tags: self.tag_list()?,
            state: state_of(&self.state)?,
            started_at: self.started_at.and_utc(),
            ended_at: self.ended_at.map(|at| at.and_utc()),
        })
    }

    fn tag_list(&self) -> Result<Vec<String>, StoreError> {
        serde_json::from_value(self.tags.clone()).map_err(|e| StoreError::damaged("tags of a conversation", e))
    }

    pub(super) fn row(&self, channels: &[ChannelEntry]) -> Result<ConversationRow, StoreError> {
        let mut duration_ms = 0;
        for channel in channels {
            duration_ms = duration_ms.max(channel.heard_ms()?);
        }
        Ok(ConversationRow {
            id: id_of(&self.id)?,
            external_id: self.external_id.clone(),
            title: self.title.clone(),
            source: self.source.clone(),
            language: self.language.clone(),
            tags: self.tag_list()?,
            state: state_of(&self.state)?,
            started_at: self.started_at.and_utc(),
            ended_at: self.ended_at.map(|at| at.and_utc()),
            duration_ms,
            channels: channels.iter().map(ChannelEntry::row).collect::<Result<_, _>>()?,
            utterance_count: channels.iter().map(|c| c.utterances as u64).sum(),
            intent: top_label(self.intent.as_ref(), self.intent_score, self.intent_tier.as_ref())?,
            sentiment: top_label(self.sentiment.as_ref(), self.sentiment_score, self.sentiment_tier.as_ref())?,
            finalization: self.finalization.as_ref().and_then(|name| Finalization::ALL.into_iter().find(|f| f.name() == name)),
            recording: false,
        })
    }
}

impl ChannelEntry {
    pub(super) fn role(&self) -> Result<Role, StoreError> {
        role_of(&self.role)
    }
    /// How far the channel is committed.
    fn heard_ms(&self) -> Result<u64, StoreError> {
        Ok(rate_of(self.rate)?.ms_at(SamplePos(self.safe_pos as u64)))
    }
    fn row(&self) -> Result<ChannelRow, StoreError> {
        let spec = self.spec()?;
        Ok(ChannelRow { channel: spec.index, role: spec.role, encoding: spec.encoding, sample_rate: spec.rate.hz() })
    }
    fn spec(&self) -> Result<ChannelSpec, StoreError> {
        Ok(ChannelSpec {
            index: ChannelIndex(self.channel as u8),
            role: self.role()?,
            encoding: self.encoding.parse::<Encoding>().map_err(|e| StoreError::damaged("encoding of a channel", e))?,
            rate: rate_of(self.rate)?,
        })
    }
    pub(super) fn view(&self) -> Result<ChannelView, StoreError> {
        Ok(ChannelView {
            spec: self.spec()?,
            attached: Attached { epoch: Epoch(self.epoch as u32), safe: SamplePos(self.safe_pos as u64), next_seq: self.next_seq as u64 },
        })
    }
}

pub(super) fn id_of<T: std::str::FromStr<Err: std::fmt::Display>>(text: &str) -> Result<T, StoreError> {
    text.parse().map_err(|e: T::Err| StoreError::damaged("id", e))
}

pub(super) fn role_of(name: &str) -> Result<Role, StoreError> {
    let known = [Role::Agent, Role::Customer, Role::Unknown].into_iter().find(|r| r.name() == name);
    known.ok_or_else(|| StoreError::damaged("role", name))
}

pub(super) fn state_of(name: &str) -> Result<ConversationState, StoreError> {
    ConversationState::ALL.into_iter().find(|s| s.name() == name).ok_or_else(|| StoreError::damaged("state", name))
}

pub(super) fn tier_of(name: &str) -> Result<Tier, StoreError> {
    let known = [Tier::Llm, Tier::SecondLlm, Tier::Local, Tier::Rules, Tier::Pending].into_iter().find(|t| t.name() == name);
    known.ok_or_else(|| StoreError::damaged("tier", name))
}

fn top_label(name: Option<&String>, score: Option<f64>, tier: Option<&String>) -> Result<Option<TopLabel>, StoreError> {
    match (name, score, tier) {
        (Some(name), Some(score), Some(tier)) => Ok(Some(TopLabel { name: name.clone(), score: score as f32, tier: tier_of(tier)? })),
        _ => Ok(None),
    }
}

/// What was never opened here.
pub(super) fn unknown(id: ConversationId) -> StoreError {
    CallError::not_found(format!("no conversation has the id {id}")).into()
}

pub(super) fn find(conn: &mut Conn, tenant: &TenantId, id: ConversationId) -> Result<Option<ConversationEntry>, StoreError> {
    on_conn!(conn, |c: B| {
        Ok(conversations::table.find((tenant.as_str(), id.to_string())).select(ConversationEntry::as_select()).first(c).optional()?)
    })
}

/// In channel order.
pub(super) fn channels_of(conn: &mut Conn, tenant: &TenantId, id: ConversationId) -> Result<Vec<ChannelEntry>, StoreError> {
    on_conn!(conn, |c: B| {
        Ok(channels::table
            .filter(channels::tenant_id.eq(tenant.as_str()))
            .filter(channels::conversation_id.eq(id.to_string()))
            .order(channels::channel)
            .select(ChannelEntry::as_select())
            .load(c)?)
    })
}

pub(super) fn row(conn: &mut Conn, tenant: &TenantId, id: ConversationId) -> Result<ConversationRow, StoreError> {
    let entry = find(conn, tenant, id)?.ok_or_else(|| unknown(id))?;
    entry.row(&channels_of(conn, tenant, id)?)
}

/// # Errors
/// `InvalidInput`: what no record could keep.
pub(super) fn check_open(request: &OpenConversation) -> Result<(), CallError> {
    if request.channels.is_empty() {
        return Err(CallError::invalid("a conversation needs at least one channel"));
    }
    for (n, channel) in request.channels.iter().enumerate() {
        if request.channels[..n].iter().any(|c| c.index == channel.index) {
            return Err(CallError::invalid(format!("channel {} is named twice", channel.index)));
        }
    }
    if request.tags.len() > MOST_TAGS {
        return Err(CallError::invalid(format!("{} tags were given: expected at most {MOST_TAGS}", request.tags.len())));
    }
    let texts = [("source", Some(&request.source)), ("language", Some(&request.language)), ("title", request.title.as_ref())];
    let tags = request.tags.iter().map(|tag| ("tag", Some(tag)));
    for (name, text) in texts.into_iter().chain([("external id", request.external_id.as_ref())]).chain(tags) {
        let Some(text) = text else { continue };
        if text.len() > LONGEST_TEXT {
            return Err(CallError::invalid(format!("the {name} has {} bytes: expected at most {LONGEST_TEXT}", text.len())));
        }
        if text.contains('\0') || (text.is_empty() && matches!(name, "external id" | "tag")) {
            return Err(CallError::invalid(format!("the {name} is empty or contains a zero character")));
        }
    }
    Ok(())
}

pub(super) fn open(
    conn: &mut Conn,
    effects: &mut Effects,
    tenant: &TenantId,
    request: &OpenConversation,
) -> Result<Conversation, StoreError> {
    if let Some(known) = find(conn, tenant, request.id)? {
        if known.state == ConversationState::Abandoned.name() && finalize::reopen(conn, effects, tenant, request.id)? {
            return find(conn, tenant, request.id)?.ok_or_else(|| unknown(request.id))?.conversation();
        }
        return known.conversation();
    }
    let id = request.id.to_string();
    if let Some(external) = &request.external_id {
        let holder: Option<String> = on_conn!(conn, |c: B| {
            conversations::table
                .filter(conversations::tenant_id.eq(tenant.as_str()))
                .filter(conversations::external_id.eq(external))
                .select(conversations::id)
                .first(c)
                .optional()?
        });
        if let Some(holder) = holder {
            if holder == id {
                // Another process has opened it since the first look.
                return find(conn, tenant, request.id)?.ok_or_else(|| unknown(request.id))?.conversation();
            }
            return Err(CallError::conflict(format!("the external id {external:?} belongs to {holder} already")).into());
        }
    }
    let now = Utc::now().naive_utc();
    let tags = serde_json::Value::from(request.tags.clone());
    on_conn!(conn, |c: B| {
        diesel::insert_into(conversations::table)
            .values((
                conversations::tenant_id.eq(tenant.as_str()),
                conversations::id.eq(&id),
                conversations::external_id.eq(&request.external_id),
                conversations::title.eq(&request.title),
                conversations::source.eq(&request.source),
                conversations::language.eq(&request.language),
                conversations::tags.eq(&tags),
                conversations::state.eq(ConversationState::Live.name()),
                conversations::started_at.eq(request.started_at.naive_utc()),
                conversations::created_at.eq(now),
                conversations::updated_at.eq(now),
                conversations::version.eq(1),
            ))
            .execute(c)?;
        for tag in &request.tags {
            diesel::insert_into(conversation_tags::table)
                .values((
                    conversation_tags::tenant_id.eq(tenant.as_str()),
                    conversation_tags::tag.eq(tag),
                    conversation_tags::conversation_id.eq(&id),
                ))
                .on_conflict_do_nothing()
                .execute(c)?;
        }
        for channel in &request.channels {
            diesel::insert_into(channels::table)
                .values((
                    channels::tenant_id.eq(tenant.as_str()),
                    channels::conversation_id.eq(&id),
                    channels::channel.eq(i64::from(channel.index.0)),
                    channels::role.eq(channel.role.name()),
                    channels::encoding.eq(channel.encoding.name()),
                    channels::rate.eq(i64::from(channel.rate.hz())),
                    channels::epoch.eq(0),
                    channels::next_seq.eq(0),
                    channels::safe_pos.eq(0),
                    channels::utterances.eq(0),
                    channels::created_at.eq(now),
                    channels::updated_at.eq(now),
                    channels::version.eq(1),
                ))
                .execute(c)?;
        }
    });
    announce(conn, effects, tenant, &id, now)?;
    find(conn, tenant, request.id)?.ok_or_else(|| unknown(request.id))?.conversation()
}

/// A channel's next epoch. On PostgreSQL each timeline begins with a million of its own: a standby that took over may lack an epoch that was
/// given out, and whoever holds that must not be taken for the next one who attaches.
trait NextEpoch {
    const SQL: &'static str;
}

impl NextEpoch for diesel::sqlite::Sqlite {
    const SQL: &'static str = "epoch + 1";
}

impl NextEpoch for diesel::pg::Pg {
    const SQL: &'static str = "greatest(epoch + 1, \
         ((('x' || substr(pg_walfile_name(pg_current_wal_insert_lsn()), 1, 8))::bit(32)::int - 1) & 4095)::bigint << 20)";
}

pub(super) fn attach(conn: &mut Conn, tenant: &TenantId, request: &Attach) -> Result<Attached, StoreError> {
    let id = request.conversation;
    // The row is touched, not only read: where several processes write, this and a close at the same time then wait for each other.
    let now = Utc::now().naive_utc();
    let state: Option<String> = on_conn!(conn, |c: B| {
        diesel::update(conversations::table.find((tenant.as_str(), id.to_string())))
            .set(conversations::updated_at.eq(now))
            .returning(conversations::state)
            .get_result(c)
            .optional()?
    });
    let state = state.ok_or_else(|| unknown(id))?;
    if state != ConversationState::Live.name() {
        return Err(CallError::conflict(format!("{id} is {state}: it takes no more audio")).into());
    }
    let raised: Option<(i64, i64, i64)> = on_conn!(conn, |c: B| {
        diesel::update(channels::table.find((tenant.as_str(), id.to_string(), i64::from(request.channel.0))))
            .set((
                channels::epoch.eq(sql::<BigInt>(<B as NextEpoch>::SQL)),
                channels::updated_at.eq(now),
                channels::version.eq(channels::version + 1),
            ))
            .returning((channels::epoch, channels::safe_pos, channels::next_seq))
            .get_result(c)
            .optional()?
    });
    let Some((epoch, safe, next_seq)) = raised else {
        return Err(CallError::not_found(format!("{id} has no channel {}", request.channel)).into());
    };
    Ok(Attached { epoch: Epoch(epoch as u32), safe: SamplePos(safe as u64), next_seq: next_seq as u64 })
}

pub(super) fn check_close(request: &Close) -> Result<(), CallError> {
    match request.state {
        ConversationState::Live => Err(CallError::invalid("a conversation closes as complete or abandoned, not as live")),
        ConversationState::Complete | ConversationState::Abandoned => Ok(()),
    }?;
    match request.heard.iter().find(|heard| i64::try_from(heard.to.0).is_err()) {
        Some(HeardTo { channel, to }) => {
            Err(CallError::invalid(format!("channel {channel} was heard up to sample {to}: no record is so long")))
        }
        None => Ok(()),
    }
}

/// The first close counts; finishing follows (`finalize.rs`).
pub(super) fn close(conn: &mut Conn, effects: &mut Effects, tenant: &TenantId, request: &Close) -> Result<Conversation, StoreError> {
    let id = request.conversation.to_string();
    let now = Utc::now().naive_utc();
    let closed = on_conn!(conn, |c: B| {
        diesel::update(conversations::table.find((tenant.as_str(), &id)))
            .filter(conversations::state.eq(ConversationState::Live.name()))
            .set((
                conversations::state.eq(request.state.name()),
                conversations::ended_at.eq(request.ended_at.naive_utc()),
                conversations::finalization.eq(Finalization::Closing.name()),
                conversations::updated_at.eq(now),
                conversations::version.eq(conversations::version + 1),
            ))
            .execute(c)?
    });
    if closed > 0 {
        finalize::begin(conn, tenant, request, now)?;
        announce(conn, effects, tenant, &id, now)?;
    }
    find(conn, tenant, request.conversation)?.ok_or_else(|| unknown(request.conversation))?.conversation()
}

pub(super) fn announce(conn: &mut Conn, effects: &mut Effects, tenant: &TenantId, id: &str, now: NaiveDateTime) -> Result<(), StoreError> {
    on_conn!(conn, |c: B| {
        diesel::insert_into(outbox::table)
            .values((
                outbox::tenant_id.eq(tenant.as_str()),
                outbox::conversation_id.eq(id),
                outbox::kind.eq("conversation"),
                outbox::subject.eq(id),
                outbox::created_at.eq(now),
            ))
            .execute(c)?
    });
    effects.announced = true;
    effects.touch(tenant, id_of(id)?);
    Ok(())
}

/// Newest first; the key is (started_at, id).
pub(super) fn list(
    conn: &mut Conn,
    tenant: &TenantId,
    filter: &ConversationFilter,
    after: Option<(NaiveDateTime, String)>,
    limit: usize,
) -> Result<Page<ConversationRow>, StoreError> {
    use conversations as t;
    let mut found: Vec<ConversationEntry> = on_conn!(conn, |c: B| {
        let mut query = t::table
            .filter(t::tenant_id.eq(tenant.as_str()))
            .order((t::started_at.desc(), t::id.desc()))
            .limit(limit as i64 + 1)
            .select(ConversationEntry::as_select())
            .into_boxed::<B>();
        if let Some(state) = filter.state {
            query = query.filter(t::state.eq(state.name()));
        }
        if let Some(from) = filter.from {
            query = query.filter(t::started_at.ge(from.naive_utc()));
        }
        if let Some(to) = filter.to {
            query = query.filter(t::started_at.lt(to.naive_utc()));
        }
        if let Some(intent) = &filter.intent {
            query = query.filter(t::intent.eq(intent));
        }
        if let Some(sentiment) = &filter.sentiment {
            query = query.filter(t::sentiment.eq(sentiment));
        }
        if let Some(tag) = &filter.tag {
            let tagged = conversation_tags::table
                .filter(conversation_tags::tenant_id.eq(tenant.as_str()))
                .filter(conversation_tags::tag.eq(tag))
                .select(conversation_tags::conversation_id);
            query = query.filter(t::id.eq_any(tagged));
        }
        if let Some((started, id)) = &after {
            // The first bound says nothing new, but lets an index begin there.
            query = query.filter(t::started_at.le(started));
            query = query.filter(t::started_at.lt(started).or(t::started_at.eq(started).and(t::id.lt(id))));
        }
        query.load(c)?
    });
    let more = found.len() > limit;
    found.truncate(limit);
    let last = found.last().filter(|_| more);
    let next_cursor = last.map(|e| Key::Conversations { started_at: e.started_at, id: e.id.clone() }.encode());
    Ok(Page { data: rows(conn, tenant, &found)?, next_cursor })
}

/// Live ones, and those that ended since; newest first.
pub(super) fn wall(conn: &mut Conn, tenant: &TenantId, since: DateTime<Utc>, most: usize) -> Result<Vec<ConversationRow>, StoreError> {
    use conversations as t;
    let mut found: Vec<ConversationEntry> = on_conn!(conn, |c: B| {
        let of_tenant = || t::table.filter(t::tenant_id.eq(tenant.as_str())).select(ConversationEntry::as_select()).limit(most as i64);
        let mut found = of_tenant()
            .filter(t::state.eq(ConversationState::Live.name()))
            .order((t::started_at.desc(), t::id.desc()))
            .load::<ConversationEntry>(c)?;
        found.extend(of_tenant().filter(t::ended_at.ge(since.naive_utc())).order(t::ended_at.desc()).load::<ConversationEntry>(c)?);
        found
    });
    found.sort_by(|a, b| (b.started_at, &b.id).cmp(&(a.started_at, &a.id)));
    found.truncate(most);
    rows(conn, tenant, &found)
}

/// The rows of the conversations with these ids, in no particular order; unknown ids are left out.
pub(super) fn by_ids(conn: &mut Conn, tenant: &TenantId, ids: &[String]) -> Result<Vec<ConversationRow>, StoreError> {
    let found: Vec<ConversationEntry> = on_conn!(conn, |c: B| {
        conversations::table
            .filter(conversations::tenant_id.eq(tenant.as_str()))
            .filter(conversations::id.eq_any(ids))
            .select(ConversationEntry::as_select())
            .load(c)?
    });
    rows(conn, tenant, &found)
}

fn rows(conn: &mut Conn, tenant: &TenantId, found: &[ConversationEntry]) -> Result<Vec<ConversationRow>, StoreError> {
    let ids: Vec<&str> = found.iter().map(|e| e.id.as_str()).collect();
    let entries: Vec<ChannelEntry> = on_conn!(conn, |c: B| {
        channels::table
            .filter(channels::tenant_id.eq(tenant.as_str()))
            .filter(channels::conversation_id.eq_any(ids))
            .order(channels::channel)
            .select(ChannelEntry::as_select())
            .load(c)?
    });
    let mut of: HashMap<String, Vec<ChannelEntry>> = HashMap::new();
    for entry in entries {
        of.entry(entry.conversation_id.clone()).or_default().push(entry);
    }
    found.iter().map(|e| e.row(of.get(&e.id).map_or(&[], Vec::as_slice))).collect()
}

/// Where a cursor of [`list`] points.
pub(super) fn place(cut: &Cut) -> Result<Option<(NaiveDateTime, String)>, CallError> {
    match cut.key()? {
        None => Ok(None),
        Some(Key::Conversations { started_at, id }) => Ok(Some((started_at, id))),
        Some(_) => Err(super::cursor::foreign()),
    }
}
