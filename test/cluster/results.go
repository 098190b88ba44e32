package main

import (
	"cmp"
	"encoding/json"
	"encoding/xml"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// States of a spec. A spec that a record lacks was not run.
const (
	statePassed  = "passed"
	stateFailed  = "failed"
	stateSkipped = "skipped"
)

// outcome is what one spec of upstream's suite came to.
type outcome struct {
	Spec    string  // full name
	State   string  // passed, failed or skipped
	Seconds float64 // how long it ran
	Why     string  `json:",omitempty"` // first lines of the failure, or the reason that the spec gave for its skip
}

// record is what all runs with one network and the addresses of one kind came to.
type record struct {
	Network string            // braid or stock
	Family  string            // v4, v6 or dual
	Facts   map[string]string // versions and machine, of the last run
	Specs   []outcome         // sorted by name
}

// junitSuites is the part of a JUnit report, as ginkgo writes it, that says what happened to specs.
type junitSuites struct {
	Suites []struct {
		Cases []junitCase `xml:"testcase"`
	} `xml:"testsuite"`
}

type junitCase struct {
	Name    string  `xml:"name,attr"`
	Status  string  `xml:"status,attr"`
	Seconds float64 `xml:"time,attr"`
	Skipped *struct {
		Message string `xml:"message,attr"`
	} `xml:"skipped"`
	Failure string `xml:"failure"`
	Error   string `xml:"error"`
}

// specPrefix begins the names of the specs that are about networks; itPrefix is ginkgo's word for a spec.
const (
	specPrefix = "[sig-network] "
	itPrefix   = "[It] "
)

// parseJUnit returns the outcomes of the [sig-network] specs that a run selected. Those that were filtered out
// stand in the report too, as skipped without a reason, and are left out.
func parseJUnit(data []byte) ([]outcome, error) {
	var all junitSuites
	if err := xml.Unmarshal(data, &all); err != nil {
		return nil, fmt.Errorf("read the JUnit report: %w", err)
	}
	var out []outcome
	for _, s := range all.Suites {
		for _, c := range s.Cases {
			name, ok := strings.CutPrefix(c.Name, itPrefix)
			if !ok || !strings.HasPrefix(name, specPrefix) {
				continue
			}
			r := outcome{Spec: name, Seconds: c.Seconds}
			switch {
			case c.Skipped != nil:
				r.State = stateSkipped
				if _, r.Why, ok = strings.Cut(c.Skipped.Message, " - "); !ok {
					continue
				}
			case c.Status == statePassed:
				r.State = statePassed
			default: // failed, timedout, panicked, interrupted, aborted
				r.State, r.Why = stateFailed, failureHead(cmp.Or(c.Failure, c.Error, c.Status))
			}
			out = append(out, r)
		}
	}
	return out, nil
}

// failureHead shortens a failure to what it says before it names places in the source.
func failureHead(text string) string {
	const most = 240
	var words []string
	for line := range strings.Lines(text) {
		line = strings.TrimSpace(line)
		if strings.HasPrefix(line, "In [") {
			break
		}
		words = append(words, strings.Fields(strings.TrimPrefix(line, "[FAILED]"))...)
	}
	head := []rune(strings.Join(words, " "))
	if len(head) > most {
		return string(head[:most]) + "…"
	}
	return string(head)
}

// merge takes newer outcomes in, each in the place of an older one of the same spec.
func (r *record) merge(newer []outcome) {
	fresh := map[string]bool{}
	for _, n := range newer {
		fresh[n.Spec] = true
	}
	r.Specs = append(slices.DeleteFunc(r.Specs, func(o outcome) bool { return fresh[o.Spec] }), newer...)
	slices.SortFunc(r.Specs, func(a, b outcome) int { return strings.Compare(a.Spec, b.Spec) })
}

// find returns what a spec came to.
func (r *record) find(spec string) (outcome, bool) {
	i, ok := slices.BinarySearchFunc(r.Specs, spec, func(o outcome, s string) int { return strings.Compare(o.Spec, s) })
	if !ok {
		return outcome{}, false
	}
	return r.Specs[i], true
}

// recordFile is where the outcomes of a network are kept in the repository, below test/cluster.
func recordFile(network, family string) string {
	return filepath.Join("testdata", "conformance", network+"-"+family+".json")
}

// specsFile keeps the names of upstream's specs, so that the page can be made again without the suite.
var specsFile = filepath.Join("testdata", "conformance", "specs.txt")

// readRecord reads a record; one that does not exist yet is empty.
func readRecord(dir, network, family string) (*record, error) {
	r := &record{Network: network, Family: family}
	data, err := os.ReadFile(filepath.Join(dir, recordFile(network, family)))
	if errors.Is(err, os.ErrNotExist) {
		return r, nil
	}
	if err != nil {
		return nil, err
	}
	if err := json.Unmarshal(data, r); err != nil {
		return nil, fmt.Errorf("read %s: %w", recordFile(network, family), err)
	}
	return r, nil
}

func (r *record) write(dir string) error {
	data, err := json.MarshalIndent(r, "", " ")
	if err != nil {
		return err
	}
	file := filepath.Join(dir, recordFile(r.Network, r.Family))
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		return err
	}
	return os.WriteFile(file, append(data, '\n'), 0o644)
}
