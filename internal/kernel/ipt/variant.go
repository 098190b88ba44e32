package ipt

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
)

// Variant is where the tools keep rules. Packets pass both places, so all programs of a machine should use
// the same one.
type Variant string

// The two variants there are.
const (
	NFT    Variant = "nft"    // nftables, since iptables 1.8
	Legacy Variant = "legacy" // the kernel's ip_tables
)

// Variants lists both, the preferred one first.
var Variants = []Variant{NFT, Legacy}

// errNoAccess means that there are tables and this process may not read them. It is an os.ErrPermission.
var errNoAccess = fmt.Errorf("%w: the capability NET_ADMIN is needed, for legacy NET_RAW too", os.ErrPermission)

// Traces are what a caller knows of the machine's programs.
type Traces struct {
	Chains []string // chains of table mangle by which one of them shows its variant
	Own    string   // beginning of the names of the caller's own chains, which say nothing
}

// use is what was seen of one variant.
type use struct {
	chain string // one of Traces.Chains, "" = none
	rules int    // of other programs
	err   error  // why its tools cannot work here, or its rules could not be read
}

// Choose returns the variant that other programs of this network namespace use, and the reason in words: the
// one with a chain of traces, else the one with more rules, else nft. It changes nothing: a table that is not
// there yet is not made. The error is about the chosen variant when that cannot work here.
func Choose(traces Traces) (Variant, string, error) {
	seen := map[Variant]use{Legacy: look(Legacy, traces, true)}
	// Reading all the rules of nft takes seconds where a proxy has many, such as the caller's own of before:
	// how many others have matters only beside others' rules in legacy.
	legacy := seen[Legacy]
	seen[NFT] = look(NFT, traces, legacy.rules > 0 || legacy.err != nil)
	v, why := choose(seen[NFT], legacy)
	if err := seen[v].err; err != nil {
		return v, why, fmt.Errorf("iptables variant %s (%s): %w", v, why, err)
	}
	return v, why, nil
}

func choose(nft, legacy use) (Variant, string) {
	switch {
	case nft.chain != "":
		return NFT, "other programs use it: it has their chain " + nft.chain
	case legacy.chain != "":
		return Legacy, "other programs use it: it has their chain " + legacy.chain
	case errors.Is(legacy.err, errNoAccess): // whatever is in them
		return Legacy, "other programs made tables of it"
	case legacy.rules > nft.rules:
		return Legacy, fmt.Sprintf("it has %d rules of other programs, nft %d", legacy.rules, nft.rules)
	case nft.err != nil && legacy.err == nil:
		return Legacy, fmt.Sprintf("nft cannot work here: %v", nft.err)
	case nft.rules > 0:
		return NFT, fmt.Sprintf("it has %d rules of other programs, legacy %d", nft.rules, legacy.rules)
	}
	return NFT, "no other program has rules in legacy"
}

// look sees what a variant holds, of both families: all its rules, or just the chains of table mangle.
func look(v Variant, traces Traces, all bool) (u use) {
	for _, ipv6 := range []bool{false, true} {
		if !Enabled(ipv6) {
			continue
		}
		t, err := Find(ipv6, v)
		if err != nil {
			u.err = errors.Join(u.err, err)
			continue
		}
		read := t.Tables
		if !all {
			read = func() (map[string]map[string][]string, error) { return t.tables("-t", "mangle") }
		}
		tables, err := read()
		if err != nil {
			u.err = errors.Join(u.err, err)
			continue
		}
		u.count(tables, traces)
	}
	return u
}

// count adds the rules of one family.
func (u *use) count(tables map[string]map[string][]string, traces Traces) {
	for _, chain := range traces.Chains {
		if _, ok := tables["mangle"][chain]; ok && u.chain == "" {
			u.chain = chain
		}
	}
	for _, chains := range tables {
		for name, rules := range chains {
			if !strings.HasPrefix(name, traces.Own) {
				u.rules += len(rules)
			}
		}
	}
}

// Tables reads every table that exists, as Save does, and makes none. What iptables cannot read is left out.
// Without the right to read it fails with an os.ErrPermission.
func (t *Tool) Tables() (map[string]map[string][]string, error) { return t.tables() }

func (t *Tool) tables(args ...string) (map[string]map[string][]string, error) {
	if !t.NFTables() && !t.inUse() {
		return nil, nil // nothing to read, for which no right is needed
	}
	text, err := t.saved(args...)
	if err != nil {
		return nil, err
	}
	var lines []string
	for _, l := range strings.Split(string(text), "\n") {
		if !strings.HasPrefix(l, "#") {
			lines = append(lines, l)
		}
	}
	return parseSaved([]byte(strings.Join(lines, "\n")))
}

// inUse reports whether the kernel has tables of variant legacy for the tool's family. It makes them when
// they are first used, and keeps them.
func (t *Tool) inUse() bool { return len(legacyTables(t.ipv6)) > 0 }

// exists reports whether the kernel has a table of variant legacy.
func exists(ipv6 bool, table string) bool { return slices.Contains(legacyTables(ipv6), table) }

func legacyTables(ipv6 bool) []string {
	file := "/proc/thread-self/net/ip_tables_names" // of the calling thread's network namespace
	if ipv6 {
		file = "/proc/thread-self/net/ip6_tables_names"
	}
	names, err := os.ReadFile(file)
	if err != nil {
		return nil
	}
	return strings.Fields(string(names))
}
