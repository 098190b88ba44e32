package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// TestSnapshot: what means nothing does not count, a missing line does.
func TestSnapshot(t *testing.T) {
	const before = `		elements = { 10.96.0.1 . tcp . 80 . 0x00000000 comment "a/web" : 10.244.0.4 . 8080,
			     10.96.0.1 . tcp . 80 . 0x00000001 comment "a/web" : 10.244.1.4 . 8080 }
10.244.0.0/24 via 10.244.0.0 dev braid.vx4 proto 66 onlink
counter packets 7 bytes 60 goto refuse comment "no rule matches: a/web"
fe80::/64 dev brd765500e06a1 proto kernel metric 256 pref medium
3: braid.vx4    inet 10.244.1.0/32 scope global braid.vx4`
	same := strings.NewReplacer("0x00000000", "0x00000001", "0x00000001", "0x00000000", "brd765500e06a1", "brd0", "3: ", "9: ", "7 bytes 60", "9 bytes 80").Replace(before)
	a := parseSnapshot(before)
	if len(a) != 5 {
		t.Fatalf("%d lines: %q", len(a), a)
	}
	if err := a.equal(parseSnapshot(same)); err != nil {
		t.Error(err)
	}
	for _, change := range []string{"10.244.1.4", "proto 66", "10.244.1.0/32"} {
		err := a.equal(parseSnapshot(strings.Replace(before, change, "x", 1)))
		if err == nil || !strings.Contains(err.Error(), change) {
			t.Errorf("without %s the difference is %v", change, err)
		}
	}
	twice := append(slices.Clone(a), a[0])
	if got := snapshot(twice).missing(a); len(got) != 1 {
		t.Errorf("of a line that is there twice and once, %q is missing", got)
	}
	pods := parseSnapshot(`elements = { "brd1140dca66ce" comment "brd1140dca66ce a/web", 10.0.0.1 }`)
	if len(pods) != 2 || len(pods.withoutPods()) != 1 {
		t.Errorf("of %q, %q is left without pods", pods, pods.withoutPods())
	}
	if o := a.overlay(); len(o) != 2 {
		t.Errorf("the overlay's lines are %q", o)
	}
}

func TestAudited(t *testing.T) {
	o := testOptions(t, "v4", 1)
	log := o.path(control, "log", "audit.log")
	event := func(account, verb, resource, group, decision string) string {
		return fmt.Sprintf(`{"verb":%q,"user":{"username":"system:serviceaccount:kube-system:%s"},"objectRef":{"resource":%q,"apiGroup":%q},`+
			`"annotations":{"authorization.k8s.io/decision":%q}}`+"\n", verb, account, resource, group, decision)
	}
	early := event("braid-coredns", "list", "pods", "", "allow")
	text := early + event("braid-coredns", "watch", "services", "", "allow") + event("braid-coredns", "watch", "services", "", "allow") +
		event("braid-coredns", "list", "endpointslices", "discovery.k8s.io", "allow") + event("braid-netagent", "list", "nodes", "", "allow") +
		event("braid-coredns", "delete", "nodes", "", "forbid")
	if err := errors.Join(os.MkdirAll(filepath.Dir(log), 0o755), os.WriteFile(log, []byte(text), 0o644)); err != nil {
		t.Fatal(err)
	}
	used, denied, err := o.audited(int64(len(early)), "braid-coredns")
	if err != nil || !slices.Equal(used, []string{"list endpointslices.discovery.k8s.io", "watch services"}) || !slices.Equal(denied, []string{"delete nodes"}) {
		t.Errorf("used %q, denied %q, error %v", used, denied, err)
	}
}

func TestSumOfCounts(t *testing.T) {
	total, failures := sum(map[string]count{
		"a: cluster IP":           {OK: 5, Worst: time.Second, Slow: 1},
		"a: node port":            {OK: 2, Failed: 1, Errors: []string{"refused"}},
		"a: DNS 1":                {OK: 7},
		"a: DNS 1, datagrams":     {OK: 6, Failed: 2, Errors: []string{"lost"}},
		"a: DNS 1, one socket":    {OK: 1, Failed: 4, Errors: []string{"gone"}},
		"outside: node port of a": {OK: 1},
		"b: allowed server":       {OK: 3},
		"b: never server":         {OK: 4, Failed: 1, Errors: []string{"answered"}},
	})
	want := tally{connections: count{OK: 8, Failed: 1, Slow: 1, Worst: time.Second}, questions: count{OK: 8, Failed: 4}, datagrams: count{OK: 6, Failed: 2},
		allowed: count{OK: 3}, forbidden: count{OK: 4, Failed: 1}}
	if fmt.Sprint(total) != fmt.Sprint(want) || len(failures) != 4 || total.broken() != 6 || !total.whole() {
		t.Errorf("%v, failures %q; want %v and four", total, failures, want)
	}
}

func TestPercentile(t *testing.T) {
	list := []time.Duration{1, 2, 3, 4, 5, 6, 7, 8, 9, 10}
	for p, want := range map[int]time.Duration{50: 5, 95: 10, 90: 9, 1: 1, 100: 10} {
		if got := percentile(list, p); got != want {
			t.Errorf("percentile %d is %d, want %d", p, got, want)
		}
	}
}

func TestChooseFaults(t *testing.T) {
	if got, err := choose(faults(), "flush,agents"); err != nil || len(got) != 2 || got[0].name != "flush" {
		t.Errorf("%v, %v", got, err)
	}
	if _, err := choose(faults(), "flush,moon"); err == nil {
		t.Error("a fault that does not exist was chosen")
	}
}
