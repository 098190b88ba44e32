package main

import (
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// junitSample is what ginkgo writes, shortened: a spec of each fate, one that was filtered out, one of
// somebody else's, and a node that is no spec.
const junitSample = `<?xml version="1.0" encoding="UTF-8"?>
<testsuites tests="8"><testsuite name="Kubernetes e2e suite" tests="8">
<testcase name="[SynchronizedBeforeSuite]" status="passed" time="0.1"></testcase>
<testcase name="[It] [sig-apps] Job should run" status="passed" time="3"></testcase>
<testcase name="[It] [sig-network] DNS should answer [Conformance]" status="passed" time="7.5"></testcase>
<testcase name="[It] [sig-network] Services should be left out" status="skipped" time="0"><skipped message="skipped"></skipped></testcase>
<testcase name="[It] [sig-network] Services should want clouds" status="skipped" time="0.2"><skipped message="skipped - Only supported for providers [gce] (not local)"></skipped></testcase>
<testcase name="[It] [sig-network] Services should reach" status="failed" time="60"><failure message="" type="failed">[FAILED] Unexpected error:
    &lt;*errors.errorString&gt;: no | answer
In [It] at: /go/service.go:1 @ 11/24/26</failure></testcase>
<testcase name="[It] [sig-network] Services should last" status="timedout" time="90"><failure message="" type="timedout">[TIMEDOUT] A suite timeout occurred
In [It] at: x</failure></testcase>
<testcase name="[It] [sig-network] [Feature:IPv6DualStack] should panic" status="panicked" time="1"><error message="boom" type="panicked">[PANICKED] Test Panicked
In [It] at: x</error></testcase>
</testsuite></testsuites>`

func TestParseJUnit(t *testing.T) {
	got, err := parseJUnit([]byte(junitSample))
	if err != nil {
		t.Fatal(err)
	}
	want := []outcome{
		{"[sig-network] DNS should answer [Conformance]", statePassed, 7.5, ""},
		{"[sig-network] Services should want clouds", stateSkipped, 0.2, "Only supported for providers [gce] (not local)"},
		{"[sig-network] Services should reach", stateFailed, 60, "Unexpected error: <*errors.errorString>: no | answer"},
		{"[sig-network] Services should last", stateFailed, 90, "[TIMEDOUT] A suite timeout occurred"},
		{"[sig-network] [Feature:IPv6DualStack] should panic", stateFailed, 1, "[PANICKED] Test Panicked"},
	}
	if !slices.Equal(got, want) {
		t.Errorf("got\n%v\nwant\n%v", got, want)
	}
	if _, err := parseJUnit([]byte("<testsuites>")); err == nil {
		t.Error("a torn report was taken")
	}
	if long := failureHead(strings.Repeat("é ", 1000)); len([]rune(long)) != 241 || !strings.HasSuffix(long, "…") {
		t.Errorf("a long failure became %d letters: %s", len([]rune(long)), long)
	}
}

// TestRecordKeepsOthers: a partial run replaces what it ran and nothing else, on disk too.
func TestRecordKeepsOthers(t *testing.T) {
	dir := t.TempDir()
	r := must(readRecord(dir, networkBraid, "v4"))
	r.merge([]outcome{{Spec: "b", State: stateFailed, Why: "old"}, {Spec: "a", State: statePassed}})
	r.merge([]outcome{{Spec: "b", State: statePassed}, {Spec: "c", State: stateSkipped}})
	if err := r.write(dir); err != nil {
		t.Fatal(err)
	}
	back := must(readRecord(dir, networkBraid, "v4"))
	if !slices.Equal(back.Specs, []outcome{{Spec: "a", State: statePassed}, {Spec: "b", State: statePassed}, {Spec: "c", State: stateSkipped}}) {
		t.Errorf("the record is %v", back.Specs)
	}
	if _, ok := back.find("d"); ok {
		t.Error("found a spec that is not there")
	}
}

func TestRenderReport(t *testing.T) {
	const policy = "[sig-network] Netpol should deny [Feature:NetworkPolicy]"
	outcomes := must(parseJUnit([]byte(junitSample)))
	braid, stock, dual := &record{Network: networkBraid, Family: "v4", Facts: map[string]string{"kernel": "Linux 6"}},
		&record{Network: networkStock, Family: "v4"}, &record{Network: networkBraid, Family: "dual"}
	braid.merge(outcomes[:4])
	dual.merge(outcomes[4:])
	stock.merge([]outcome{{Spec: "[sig-network] Services should reach", State: statePassed}, {Spec: "[sig-network] Services should last", State: stateSkipped, Why: "no time"}})
	all := []string{policy}
	for _, o := range outcomes {
		all = append(all, o.Spec)
	}
	page := renderReport(all, []*record{braid, stock, dual})
	for _, want := range []string{
		"| kernel | Linux 6 |  |  |\n",
		"| Conformance: 1 | Braid | 1 | 0 | 0 | 0 |\n", "| Conformance: 1 | stock | 0 | 0 | 0 | 1 |\n",
		"| single-stack (with those): 5 | Braid | 1 | 2 | 1 | 1 |\n", "| single-stack (with those): 5 | stock | 1 | 0 | 2 | 2 |\n",
		"| dual-stack: 1 | Braid | 0 | 1 | 0 | 0 |\n",
		"- Services should reach, with Braid: Unexpected error: &lt;\\*errors.errorString&gt;: no \\| answer\n",
		"\nno time:\n\n- Services should last, with stock only\n",
		"\n- Netpol should deny \\[Feature:NetworkPolicy\\], with stock only\n",
		"\n| DNS should answer \\[Conformance\\] | passed | not run |\n",
	} {
		if !strings.Contains(page, want) {
			t.Errorf("the page lacks %q", want)
		}
	}
	if t.Failed() {
		t.Log(page)
	}
	if none := renderReport(all[:1], nil); !strings.Contains(none, "## Failed\n\nNone.\n") {
		t.Error("without results something failed")
	}
}

// TestRoundsCoverAllSpecs: each spec that is not excluded runs in exactly one round of each network, and the
// expression given to ginkgo matches it and no other.
func TestRoundsCoverAllSpecs(t *testing.T) {
	all := readSpecs(t)
	for _, network := range []string{networkBraid, networkStock} {
		ran := map[string]int{}
		for _, r := range rounds() {
			if r.Network != network {
				continue
			}
			chosen := r.choose(all, every, none)
			re := regexp.MustCompile(exactly(chosen))
			for _, s := range all {
				if got := re.MatchString("Kubernetes e2e suite " + s); got != slices.Contains(chosen, s) {
					t.Errorf("%s: the expression of %s, %d nodes, matches: %t", s, r.Family, r.Nodes, got)
				}
			}
			for _, s := range chosen {
				ran[s]++
			}
		}
		for _, s := range all {
			want := 1
			if excluded(network, s) != "" {
				want = 0
			}
			if ran[s] != want {
				t.Errorf("%s runs %d times on %s, want %d", s, ran[s], network, want)
			}
		}
	}
	for _, e := range exclusions {
		if !slices.ContainsFunc(all, e.specs.MatchString) {
			t.Errorf("no spec is skipped because: %s", e.why)
		}
	}
}

func TestWants(t *testing.T) {
	for _, tc := range []struct {
		only list
		want string
	}{
		{nil, "braid-v4 braid-v4 braid-v4 braid-dual stock-v4 stock-v4 stock-v4 stock-dual"},
		{list{"stock"}, "stock-v4 stock-v4 stock-v4 stock-dual"},
		{list{"dual"}, "braid-dual stock-dual"},
		{list{"dual", "stock"}, "stock-dual"},
	} {
		var got []string
		for _, r := range rounds() {
			if (&conformance{only: tc.only}).wants(r) {
				got = append(got, r.Network+"-"+r.Family)
			}
		}
		if strings.Join(got, " ") != tc.want {
			t.Errorf("--only %s runs %v, want %s", tc.only.String(), got, tc.want)
		}
	}
}

func readSpecs(t *testing.T) []string {
	t.Helper()
	return strings.Split(strings.TrimSpace(string(must(os.ReadFile(specsFile)))), "\n")
}

// TestPageIsOfTheRecords holds docs/conformance.md against the results that are kept: nobody typed into it.
func TestPageIsOfTheRecords(t *testing.T) {
	page := string(must(os.ReadFile(filepath.Join("..", "..", "docs", "conformance.md"))))
	if want := renderReport(readSpecs(t), must(readRecords("."))); page != want {
		t.Error("docs/conformance.md is not what the records make: `go run -C test/cluster . conformance --focus '^$'` writes it again")
	}
}
