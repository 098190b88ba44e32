package health

import (
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/coredns/caddy"
	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"

	"github.com/braidnet/braid/plugin/kubernetes/stores"
)

func TestBody(t *testing.T) {
	now := time.Unix(1000, 0)
	for _, tc := range []struct {
		list []stores.Status
		want string
	}{
		{nil, "OK"},
		{[]stores.Status{{Source: "a", Synced: true, Current: now.Add(-3 * time.Second)}}, "OK"},
		{[]stores.Status{{Source: "manifests m", Synced: true}}, "OK"}, // it cannot tell
		{[]stores.Status{{Source: "a"}, {Source: "b", Synced: true, Current: now.Add(-90*time.Second - 5)}},
			"OK\nkubernetes: a: cluster state not synced\nkubernetes: b: cluster state is 1m30s old"},
	} {
		if got := body(tc.list, now); got != tc.want {
			t.Errorf("got %q, want %q", got, tc.want)
		}
	}
}

func TestLife(t *testing.T) {
	s := &server{addr: "127.0.0.1:0", lameduck: time.Millisecond, status: func() []stores.Status { return nil }}
	for range 2 { // a reload stops and starts
		if err := s.start(); err != nil {
			t.Fatal(err)
		}
		resp, err := http.Get(s.url())
		if err != nil {
			t.Fatal(err)
		}
		text, err := io.ReadAll(resp.Body)
		resp.Body.Close()
		if err != nil || resp.StatusCode != http.StatusOK || string(text) != "OK" {
			t.Errorf("%s %q %v", resp.Status, text, err)
		}
		if err := s.stop(); err != nil {
			t.Fatal(err)
		}
		if resp, err := http.Get(s.url()); err == nil {
			resp.Body.Close()
			t.Error("it answers after its end")
		}
	}
	if err := s.start(); err != nil {
		t.Fatal(err)
	}
	if err := s.finish(); err != nil {
		t.Fatal(err)
	}
	if err := s.finish(); err != nil { // nothing to do any more
		t.Fatal(err)
	}
}

func TestOwnChecksAreCounted(t *testing.T) {
	count := func(m prometheus.Metric) *dto.Metric {
		var out dto.Metric
		if err := m.Write(&out); err != nil {
			t.Fatal(err)
		}
		return &out
	}
	before := count(failures).GetCounter().GetValue()
	ask(t.Context(), http.DefaultClient, "http://127.0.0.1:1/health")
	if got := count(failures).GetCounter().GetValue(); got != before+1 {
		t.Errorf("%v failures counted, want one more than %v", got, before)
	}
	if count(duration).GetHistogram().GetSampleCount() == 0 {
		t.Error("no duration was observed")
	}
}

func TestParse(t *testing.T) {
	s, err := parse(caddy.NewTestController("dns", "health 127.0.0.1:8081 {\nlameduck 20s\n}"))
	if err != nil || s.addr != "127.0.0.1:8081" || s.lameduck != 20*time.Second {
		t.Errorf("%+v %v", s, err)
	}
	if s, err = parse(caddy.NewTestController("dns", "health")); err != nil || s.addr != ":8080" {
		t.Errorf("%+v %v", s, err)
	}
	for text, want := range map[string]string{
		"health 8080":                       `Testfile:1 - Error during parsing: address: found "8080", want [HOST]:PORT such as :8080`,
		"health :1 :2":                      `Testfile:1 - Error during parsing: address: found [":1" ":2"], want one [HOST]:PORT such as :8080`,
		"health :8080 {\nlameduck\n}":       `Testfile:2 - Error during parsing: lameduck: found [], want a duration such as 5s`,
		"health :8080 {\nlameduck long\n}":  `Testfile:2 - Error during parsing: lameduck: found "long", want a duration such as 5s`,
		"health :8080 {\n\nlameducks 5s\n}": `Testfile:3 - Error during parsing: unknown property "lameducks"; accepted: lameduck`,
	} {
		if _, err := parse(caddy.NewTestController("dns", text)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q:\n got %v\nwant %s", text, err, want)
		}
	}
}
