# Bulkhead. "make run" and "make test" are all that a newcomer needs.
GO      ?= go
DATA    ?= data
BENCH   ?=
VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo dev)
LDFLAGS  = -s -w -X main.version=$(VERSION)

.PHONY: run build test lint fuzz chaos bench clean

run: build ## everything in one process, with demo tenants and calls
	./bin/bulkhead run --demo --data $(DATA)

build: ## the one binary, static
	CGO_ENABLED=0 $(GO) build -trimpath -ldflags '$(LDFLAGS)' -o bin/bulkhead ./cmd/bulkhead

test: ## installs what the tests need, then runs all of them, the kept corpus of every fuzz target included, with the race detector
	scripts/test-deps
	$(GO) vet ./...
	CGO_ENABLED=1 GORACE=atexit_sleep_ms=20 $(GO) test -race -shuffle=on -p 1 -timeout 15m ./...

lint: ## formatting, vet, staticcheck
	@out=$$(gofmt -s -l .); if [ -n "$$out" ]; then echo "gofmt -s -w these:"; echo "$$out"; exit 1; fi
	$(GO) vet ./...
	$(GO) mod tidy -diff
	$(GO) tool -modfile=tools/go.mod staticcheck ./...

fuzz: ## every fuzz target for FUZZ (default 30s); apart from test, which must say the same twice
	scripts/fuzz $(or $(FUZZ),30s)

chaos: ## 100,000 legs through the whole pipeline while it is killed, 5,000 through a real Asterisk, 200 kills of the registry each, a minute of changes at a real Kamailio, 10 minutes beside an Asterisk without its centre, 10,000 questions of random bytes in each dialect, a stall of 5 minutes and a gap of one, about 65 minutes
	BULKHEAD_CHAOS_CHANGES=$(or $(CHANGES),60s) $(GO) test -count=1 -timeout 10m -run '^TestChangesUnderTraffic$$' ./kamailio
	BULKHEAD_KILLS=$(or $(KILLS),200) $(GO) test -count=1 -timeout 30m -run '^TestKilled' ./registry
	BULKHEAD_CHAOS_LEGS=$(or $(LEGS),100000) BULKHEAD_CHAOS_RATE=$(or $(RATE),100) BULKHEAD_CHAOS_SEED=$(or $(SEED),1) \
	BULKHEAD_CHAOS_REAL_LEGS=$(or $(REAL_LEGS),5300) BULKHEAD_CHAOS_CUT=$(or $(CUT),600) BULKHEAD_CHAOS_RANDOM=$(or $(QUESTIONS),10000) \
	BULKHEAD_CHAOS_STALL=$(or $(STALL),300) BULKHEAD_CHAOS_GAP=$(or $(GAP),60) BULKHEAD_CHAOS_GAP_CALLS=1000 \
		$(GO) test -count=1 -timeout 90m -v -run '^TestChaos' ./cmd/bulkhead

bench: ## prints one line a figure; BENCH=name runs one
	@$(GO) run ./cmd/bench $(BENCH)

clean:
	rm -rf bin $(DATA)
