# Braid: `make` alone prints what each target does.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DELETE_ON_ERROR:
export CGO_ENABLED ?= 0

VERSION := $(shell git describe --tags --always --dirty 2>/dev/null || echo devel)
COMMIT  := $(shell git rev-parse --short HEAD 2>/dev/null || echo unknown)
LDFLAGS := -s -w
NAME    ?= demo
# Debian packages that the playground and the tests call, behind a command or file of each (runc and
# debootstrap for real clusters, a C compiler for the race detector); `make deps` installs what is missing. Debian's other
# package of nc, netcat-traditional, does not know the options.
TOOLS   := ip:iproute2 nft:nftables iptables:iptables ipset:ipset dig:dnsutils curl:curl ping:iputils-ping nc.openbsd:netcat-openbsd strace:strace \
	runc:runc debootstrap:debootstrap nsenter:util-linux gcc:gcc /usr/include/stdlib.h:libc6-dev
# A plain `su` leaves these folders out, and the tools are there.
export PATH := $(PATH):/usr/local/sbin:/usr/sbin:/sbin

# Prints failures with their output, and at the end what was skipped and why.
GOTEST  := go tool gotestsum --format pkgname

.PHONY: help
help: ## print this text
	@echo "Braid: names, services and pods for a Kubernetes cluster"
	@awk -F':.*## ' '/^[a-z-]+:.*## / { printf "  make %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.PHONY: build
build: ## build bin/coredns, bin/netagent and bin/braid
	@mkdir -p bin
	go build -ldflags "$(LDFLAGS) -X github.com/coredns/coredns/coremain.GitCommit=$(COMMIT)" -o bin/coredns ./coredns-build
	go build -ldflags "$(LDFLAGS) -X github.com/braidnet/braid/netagent/cli.Version=$(VERSION)" -o bin/netagent ./netagent
	go build -ldflags "$(LDFLAGS)" -o bin/braid ./cni

.PHONY: coredns-minimal
coredns-minimal: ## build bin/coredns-minimal, with the plugins of kubeadm's Corefile only
	@mkdir -p bin
	go build -tags minimal -ldflags "$(LDFLAGS) -X github.com/coredns/coredns/coremain.GitCommit=$(COMMIT)" -o bin/coredns-minimal ./coredns-build

.PHONY: deps
deps: ## install the Debian packages that demo and test need (as root, only what is missing)
	@missing=(); for t in $(TOOLS); do command -v $${t%%:*} >/dev/null || [ -e $${t%%:*} ] || missing+=($${t##*:}); done; \
	if [ $${#missing[@]} -gt 0 ]; then \
	  if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	    echo "installing $${missing[*]}"; \
	    apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$${missing[@]}" >/dev/null; \
	  else echo "please install these packages and try again: $${missing[*]}" >&2; exit 1; fi; \
	fi

.PHONY: demo
demo: build deps ## start a three-node playground on this machine and tour it (root; NAME=demo)
	bin/netagent lab down --name $(NAME)
	bin/netagent lab up --name $(NAME) --nodes 3 examples
	bin/netagent lab tour --name $(NAME)

.PHONY: demo-down
demo-down: ## remove every trace of the playground
	@if [ -x bin/netagent ]; then bin/netagent lab down --name $(NAME); else $(MAKE) --no-print-directory build && bin/netagent lab down --name $(NAME); fi

.PHONY: test
test: images deps ## run every test: units, kernel tests in network namespaces, the playground, a real cluster (root)
	CGO_ENABLED=1 $(GOTEST) -- -race -timeout 20m ./internal/... ./plugin/... ./netagent/... ./cni/... ./coredns-build/...
	$(GOTEST) -- -timeout 40m ./deploy/... ./test/...
	go test -run '^$$' -fuzz '^FuzzParse$$' -fuzztime 30s ./internal/names
	go test -run '^$$' -fuzz '^FuzzCorefile$$' -fuzztime 30s ./plugin/kubernetes
	go test -run '^$$' -fuzz '^FuzzReceive$$' -fuzztime 15s ./internal/kernel/tun
	go test -run '^$$' -fuzz '^FuzzSplit$$' -fuzztime 15s ./internal/kernel/tun
	$(GOTEST) --raw-command -- go test -C test/cluster -json -count=1 -timeout 40m ./...

# A subject: `make test-faults ARGS=-run=TestFaults/udp`.
.PHONY: test-faults
test-faults: build deps ## do harm to a node in every way we know, with every overlay, while agents look, do not look, or are gone (root, 10 minutes)
	go test ./test/scenario -count=1 -v -timeout 60m -run TestFaults -faults.all $(ARGS)

# TestPolicies has these two in a small form.
.PHONY: test-policy-hard
test-policy-hard: build deps ## kill agents 20 times under load, and let 1,000 pods start while agents come to a stop half of the time (root, 25 minutes)
	BRAID_KILLS=20 BRAID_PAUSE=10ms go test ./test/scenario -count=1 -v -timeout 60m -run 'TestPolicies/.*/...faults'
	BRAID_RACERS=1000 go test ./test/scenario -count=1 -v -timeout 60m -run 'TestPolicies/.*/...startup'
	BRAID_RACERS=1000 BRAID_HINDRANCE=500ms go test ./test/scenario -count=1 -v -timeout 60m -run 'TestPolicies/.*/...startup'

.PHONY: test-guest
test-guest: build deps ## run the overlays ipip and wireguard on Debian's kernel, in a virtual machine (root, 5 minutes)
	@command -v qemu-system-x86_64 >/dev/null || { apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends qemu-system-x86 >/dev/null; }
	go run ./test/guest

.PHONY: images
images: build ## write bin/images/*.tar, container images that `ctr images import` takes
	go run ./deploy/images

.PHONY: conformance
conformance: images deps ## run upstream's network specs on real clusters and write docs/conformance.md (root, two hours)
	go run -C test/cluster . conformance --images bin/images/netagent.tar,bin/images/coredns.tar

.PHONY: oracle
oracle: deps ## compare our CoreDNS with the stock one, query by query, our services with kube-proxy, packet by packet, our CNI plugin with the reference ones, and meet flannel's nodes (root; builds them all)
	cd test/oracle && go test -v -count=1 ./dns ./fakeapi
	cd test/oracle && CGO_ENABLED=1 go test -v -count=1 ./flannel
	cd test/oracle && go test -v -count=1 -timeout 40m ./cni -oracle.cases 600
	cd test/oracle/services && go test -v -count=1 -timeout 90m . -oracle.clusters 2000

# Other clusters: `make fuzz-policy ARGS="-policy.seed 7"`.
.PHONY: fuzz-policy
fuzz-policy: deps ## hold policies against the API's text on 10,000 random clusters: compiler, and kernel in both modes (root, half an hour)
	go test -count=1 -v -timeout 120m -run 'TestDifferential|TestKernelAgrees' ./netagent/policy ./netagent/policy/nftables ./netagent/policy/iptables \
	  -policy.worlds 10000 $(ARGS)

.PHONY: bench
bench: ## run the small benchmarks; bench-services and bench-policy measure the whole program beside a peer
	go test -run '^$$' -bench . -benchmem ./internal/... ./netagent/... ./plugin/...

# More: `make bench-services ARGS=-full`, or what `go run ./test/bench/services --help` says.
.PHONY: bench-services
bench-services: build deps ## measure services beside kube-proxy, both modes (root, builds kube-proxy; ARGS=-full for hours)
	go run ./test/bench/services $(ARGS)

# More: `go run ./test/bench/policy --help`.
.PHONY: bench-policy
bench-policy: build deps ## measure policy enforcement beside kube-router (root, builds it; half an hour)
	go run ./test/bench/policy $(ARGS)

# More: what `go run ./test/bench/dns --help` says, such as ARGS="--services 10000 --cases nothing" for memory.
.PHONY: bench-dns
bench-dns: build ## measure DNS beside stock CoreDNS, which it builds (installs Debian's dnsperf; ARGS="--rounds 5")
	@command -v dnsperf >/dev/null || { apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends dnsperf >/dev/null; }
	go run ./test/bench/dns $(ARGS)

# One subject, one figure: `make bench-pods ARGS="-subjects udp -measures 1.stream"`.
.PHONY: bench-pods
bench-pods: build deps ## measure what pods get through with each overlay, beside flannel and kernel set-ups by hand (root, builds flannel)
	go run ./test/bench/pods $(ARGS)

# More: `make bench-cni ARGS="--rounds 200"`, or what `go run ./test/bench/cni --help` says.
.PHONY: bench-cni
bench-cni: build deps ## measure how long pods wait for their network, beside the reference plugins (root, builds these)
	go run ./test/bench/cni $(ARGS)

.PHONY: lint
lint: ## gofmt, go vet, staticcheck
	@out=$$(gofmt -l $$(git ls-files '*.go')); [ -z "$$out" ] || { echo "not gofmt-ed:" $$out; exit 1; }
	go vet ./...
	go tool staticcheck ./...
	for m in test/cluster test/oracle test/oracle/services; do go vet -C $$m ./...; done
	CGO_ENABLED=1 go vet -C test/oracle ./flannel

.PHONY: clean
clean: ## remove bin/
	rm -rf bin
