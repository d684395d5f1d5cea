# SPDX-License-Identifier: MIT OR Apache-2.0
#
# On a fresh Debian or Ubuntu with make, git and Rust: `make run` and `make test`. `make help` lists the rest.

PREFIX  ?= /usr/local
DESTDIR ?=
ARGS    ?=
CARGO   ?= cargo

# A guest keeps half a processor busy, since it often waits, and takes up to 3 GB: two guests a processor, if there is room.
JOBS ?= $(shell awk -v most=$$(( 2 * $$(nproc) )) \
	'/^MemAvailable:/ { jobs = int($$2 / 3000000); if (jobs > most) jobs = most; print (jobs > 1 ? jobs : 1) }' /proc/meminfo)
export JOBS

arch     := $(shell uname -m)
comma    := ,
target   := $(arch)-unknown-linux-gnu
build    := $(or $(CARGO_TARGET_DIR),target)
bin      := $(build)/release/bpftk
# Without root and without sudo, bpftk says which capability it lacks, and the tests why they skip.
sudo     := $(shell [ "$$(id -u)" -eq 0 ] || command -v sudo)

# One static build serves `make static`, the host tests and the guests: what is tested is what is shipped. An explicit --target
# keeps its flags away from build scripts, which can't be static, and its objects apart from those of `make build`.
#
# libelf.a that can decompress with zstd (elfutils 0.189 and later) needs more than libbpf-sys knows to link, and that of 0.192 isn't
# whole. Then libelf is built from the source that libbpf-sys brings along.
libdir    = $(firstword $(wildcard /usr/lib/$(arch)-linux-gnu) /usr/lib)
vendored  = $(shell nm $(libdir)/libelf.a 2>/dev/null | grep -q ' U ZSTD_' && echo ,libbpf-rs/vendored)
static    = LIBBPF_SYS_LIBRARY_PATH=$(libdir) \
	RUSTFLAGS="-C target-feature=+crt-static $(RUSTFLAGS)" \
	$(CARGO) $(1) --locked --release --features static$(vendored) --target $(target)
static_bin := $(build)/$(target)/release/bpftk
# Where PostgreSQL and other servers are for tests, if the machine has none.
export BPFTK_POSTGRES := $(abspath $(build)/postgresql)
export BPFTK_SERVERS  := $(abspath $(build)/servers)

bindir    = $(DESTDIR)$(PREFIX)/bin
mandir    = $(DESTDIR)$(PREFIX)/share/man/man1
bashdir   = $(DESTDIR)$(PREFIX)/share/bash-completion/completions
zshdir    = $(DESTDIR)$(PREFIX)/share/zsh/site-functions
fishdir   = $(DESTDIR)$(PREFIX)/share/fish/vendor_completions.d

.DEFAULT_GOAL := build
# Targets that build with cargo share its directory, and it uses all processors by itself.
.NOTPARALLEL:
.PHONY: help deps deps-test deps-bench build run static test host-test test-bin servers check fuzz check-bpf vm-test bench lint man \
	install uninstall clean

help: ## This list
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' Makefile | awk -F'\t' '{ printf "make %-10s %s\n", $$1, $$2 }'
	@echo
	@echo 'Times are those of two processors, the first time; what is installed comes through apt, by .ci/deps, which lists it.'

deps: ## Install what building needs and this machine lacks: compilers, libelf, zlib, libpcap (a minute)
	@.ci/deps build

deps-test: ## The same for the tests: QEMU, network tools, clients and servers (a minute)
	@.ci/deps build test

deps-bench: ## The same for the figures: bpftrace, libbpf-tools, xdp-tools (a minute)
	@.ci/deps build test bench

build: deps ## Build target/release/bpftk (3 minutes)
	$(CARGO) build --locked --release

run: build ## Run bpftk with ARGS="tcpconnect -P 443"; without ARGS doctor, then tcpconnect
ifeq ($(strip $(ARGS)),)
	-$(sudo) $(bin) doctor
	$(sudo) $(bin) tcpconnect
else
	$(sudo) $(bin) $(ARGS)
endif

static: deps-test ## Build dist/bpftk, one file that needs no shared library (3 minutes)
	$(call static,build)
	@if ldd $(static_bin) 2>/dev/null | grep '=>'; then echo '$(static_bin) needs these shared libraries' >&2; exit 1; fi
	install -D -m 755 $(static_bin) dist/bpftk

# TESTS picks tests by parts of their names, KERNELS where they run: `here`, and series of kernels.
KERNELS ?= here 5.10 6.1 6.12 7
TESTS   ?=
NOISE   ?= 10
# By another name: a recipe with MAKE in it runs even where `make -n` only asks what would be run.
again    := $(MAKE) --no-print-directory
run_tests = tests/run.py --bpftk $(static_bin) --unit $$(cat $(build)/test-unit) --host $$(cat $(build)/test-host) \
	--sudo '$(sudo)' --noise $(NOISE)

test: deps-test servers test-bin ## Everything: lint, BPF for both architectures, tests here, in QEMU (30 minutes; 400 MB of packages)
	@$(run_tests) --step lint='$(again) lint' --step bpf='$(again) check-bpf' \
		--on '$(KERNELS)' $(TESTS)

host-test: deps-test servers test-bin ## Unit tests and host tests, on this kernel (15 minutes)
	@$(run_tests) --on here $(TESTS)

vm-test: deps-test servers test-bin ## What a kernel can change, on Debian's kernels in QEMU; KERNELS="6.1 7" picks (20 minutes)
	@$(run_tests) --on '$(filter-out here,$(subst $(comma), ,$(KERNELS)))' $(TESTS)

check: deps ## Formatting, lints and unit tests, without root: before each commit (2 minutes, later seconds)
	$(CARGO) fmt --all --check
	@tests/spdx.sh
	$(CARGO) clippy --locked --all-targets -- -D warnings
	$(CARGO) test --locked --bin bpftk

servers: deps-test
	@tests/unpack.sh $(BPFTK_POSTGRES) postgresql
	@tests/unpack.sh $(BPFTK_SERVERS) nginx haproxy

# bpftk and the binaries of the tests in one go, since each link takes one processor alone. Their names have a hash in them, so cargo
# says what they are.
test-bin: deps-test
	@mkdir -p $(build)
	@$(call static,test) --no-run --message-format=json-render-diagnostics >$(build)/test-build.json
	@executable() { jq -r "select(.reason == \"compiler-artifact\" and .profile.test and .target.name == \"$$1\") | .executable" \
		$(build)/test-build.json; }; \
	executable bpftk >$(build)/test-unit; executable host >$(build)/test-host; test -s $(build)/test-unit && test -s $(build)/test-host

fuzz: deps-test ## The random tests of all that reads text and files, ROUNDS=100 times as long as in `make test`
	RUST_TEST_THREADS=$$(nproc) BPFTK_ROUNDS=$(or $(ROUNDS),100) $(CARGO) test --locked --release --bin bpftk fuzz_ -- --nocapture

check-bpf: ## Compile every bpf/*.bpf.c for x86_64 and aarch64
	@tests/bpf-compile.sh

bench: deps-bench ## Figures, side by side with libbpf-tools, bpftrace and the kernel's own
	$(call static,build)
	@$(call static,build) --bench figures --message-format=json-render-diagnostics >$(build)/bench-build.json
	@$(call static,test) --bin bpftk --no-run --message-format=json-render-diagnostics >$(build)/bench-unit.json
	@executable() { jq -r "select(.reason == \"compiler-artifact\" and .target.name == \"$$1\" and .executable) | .executable" $$2; }; \
	$(sudo) tests/bench/run.sh $(static_bin) "$$(executable figures $(build)/bench-build.json)" \
		"$$(executable bpftk $(build)/bench-unit.json)"

# With the flags of the static build, so that what its build scripts made serves here too.
lint: deps-test ## Formatting, licences, clippy without warnings, shellcheck where it is installed (1 minute)
	$(CARGO) fmt --all --check
	@tests/spdx.sh
	@$(call static,clippy) --all-targets -- -D warnings
	@if command -v shellcheck >/dev/null; then \
		shellcheck -x -S warning $$(git grep -lE '^#!/bin/(ba)?sh|^#!/bin/busybox sh'); \
	else echo 'SKIP shellcheck is not installed'; fi

man: build ## Write the manual pages into man/
	$(bin) man man

# Under sudo there may be no cargo: then what `make build` built is installed.
install: ## Install binary, manual pages and completions under PREFIX (default /usr/local), in DESTDIR
	@if command -v $(CARGO) >/dev/null; then $(MAKE) --no-print-directory build; \
	elif [ ! -x $(bin) ]; then echo 'no $(bin): run `make build` first' >&2; exit 1; fi
	install -D -m 755 $(bin) $(bindir)/bpftk
	install -d $(mandir)
	install -m 644 man/*.1 $(mandir)
	install -d $(bashdir) $(zshdir) $(fishdir)
	$(bin) completions bash >$(bashdir)/bpftk
	$(bin) completions zsh >$(zshdir)/_bpftk
	$(bin) completions fish >$(fishdir)/bpftk.fish

uninstall: ## Remove what install put there, and nothing else
	rm -f $(bindir)/bpftk $(addprefix $(mandir)/,$(notdir $(wildcard man/*.1)))
	rm -f $(bashdir)/bpftk $(zshdir)/_bpftk $(fishdir)/bpftk.fish

clean: ## Remove target and dist
	$(CARGO) clean
	rm -rf dist
