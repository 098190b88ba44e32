package kubernetes

import (
	"bytes"
	"context"
	"errors"
	golog "log"
	"log/slog"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/coredns/caddy"
	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"

	"github.com/braidnet/braid/internal/model"
	"github.com/braidnet/braid/internal/names"
	nt "github.com/braidnet/braid/internal/names/namestest"
	"github.com/braidnet/braid/plugin/kubernetes/stores"
)

func startWith(t *testing.T, stanza string, run stores.Run) *Kubernetes {
	t.Helper()
	cfg, err := parse(caddy.NewTestController("dns", stanza))
	if err != nil {
		t.Fatal(err)
	}
	k := &Kubernetes{cfg: cfg, upstream: &fakeUpstream{}, Next: nextPlugin}
	if k.Ready() {
		t.Error("ready before it was started")
	}
	k.start(stores.New(run, slog.New(slog.DiscardHandler), nil), nil)
	t.Cleanup(func() { k.live.Load().lease.Release() })
	return k
}

func TestStartWaitsForTheFirstState(t *testing.T) {
	var got stores.Source
	var kinds []model.Kind
	k := startWith(t, "kubernetes cluster.local {\nmanifests m\nstartup_timeout 1h\n}", func(ctx context.Context, src stores.Source, ks []model.Kind, s *model.Store) error {
		got, kinds = src, ks
		nt.Apply(s, nt.Namespace("prod"))
		s.MarkSynced()
		<-ctx.Done()
		return nil
	})
	if !k.Ready() || !k.index().HasNamespace("prod") {
		t.Error("start returned before the first state was complete")
	}
	if got != (stores.Source{Manifests: "m"}) || !slices.Equal(kinds, k.cfg.kinds()) {
		t.Errorf("source = %+v, kinds = %v", got, kinds)
	}
}

func TestStartServesUnsyncedAfterTheTimeout(t *testing.T) {
	k := startWith(t, "kubernetes cluster.local {\nmanifests m\nstartup_timeout 1ms\n}", func(ctx context.Context, _ stores.Source, _ []model.Kind, _ *model.Store) error {
		<-ctx.Done()
		return nil
	})
	if k.Ready() {
		t.Error("ready without a first state")
	}
}

func TestBoundAddrs(t *testing.T) {
	got := boundAddrs([]string{"127.0.0.1", "10.0.0.1", "fd00::1/64", "192.0.2.1/24", "::1", "nonsense", "fe80::1%eth0"})
	var want []netip.Addr
	for _, s := range []string{"10.0.0.1", "fd00::1", "192.0.2.1", "fe80::1"} {
		want = append(want, netip.MustParseAddr(s))
	}
	if !slices.Equal(got, want) {
		t.Errorf("bound to %v, want %v", got, want)
	}
	for _, a := range boundAddrs([]string{""}) {
		if a.IsLoopback() {
			t.Errorf("%s is of no use to clients", a)
		}
	}
}

func TestProgrammingDuration(t *testing.T) {
	store := model.NewStore()
	index := names.New()
	store.Subscribe(index.Apply)
	observeProgramming(store, index)
	count := func(kind string) uint64 {
		var m dto.Metric
		if err := programming.WithLabelValues(kind).(prometheus.Metric).Write(&m); err != nil {
			t.Fatal(err)
		}
		return m.GetHistogram().GetSampleCount()
	}
	slice := func(service string, at time.Time) *model.EndpointSlice {
		s := nt.Slice("prod/"+service+"-1", service, "", nt.Ready("10.0.0.1", "", ""))
		s.LastChange = at
		return s
	}
	now := time.Now()
	nt.Apply(store, nt.Service("prod/web", "10.96.0.1", ""), nt.Headless("prod/db", ""), slice("web", now))
	store.MarkSynced()
	nt.Apply(store, slice("web", now.Add(time.Second)), slice("db", now), slice("unknown", now), slice("db2", time.Time{}))
	if got := count("cluster_ip"); got != 1 {
		t.Errorf("cluster_ip has %d samples, want the one after the first state", got)
	}
	if got := count("headless_with_selector"); got != 1 {
		t.Errorf("headless_with_selector has %d samples, want 1", got)
	}
}

func TestLogHandler(t *testing.T) {
	var out bytes.Buffer
	golog.SetOutput(&out)
	defer golog.SetOutput(os.Stderr)
	l := slog.New(logHandler{}).With("source", "a b").WithGroup("g")
	l.Info("read", "n", 3, slog.Group("in", "x", "y"))
	l.Warn("odd", "err", errors.New(`no "file"`))
	l.Error("bad", "empty", "")
	for _, want := range []string{
		"[INFO] plugin/kubernetes: read source=\"a b\" g.n=3 g.in.x=y\n",
		"[WARNING] plugin/kubernetes: odd source=\"a b\" g.err=\"no \\\"file\\\"\"\n",
		"[ERROR] plugin/kubernetes: bad source=\"a b\" g.empty=\"\"\n",
	} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("log has no %q:\n%s", want, out.String())
		}
	}
}
