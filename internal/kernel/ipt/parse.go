package ipt

import (
	"bytes"
	"errors"
	"fmt"
	"strconv"
	"strings"
)

// errIncompatible: the table holds rules that iptables cannot print, so what was read is not all.
var errIncompatible = errors.New("table was changed with nft in a way that iptables cannot read; remove those rules or use nftables")

// parseSaved reads the output of iptables-save: "*table", ":CHAIN POLICY [packets:bytes]",
// "-A CHAIN rule", "COMMIT", and comments.
func parseSaved(text []byte) (map[string]map[string][]string, error) {
	out := map[string]map[string][]string{}
	var table map[string][]string
	for n, raw := range bytes.Split(text, []byte("\n")) {
		line := strings.TrimRight(string(raw), "\r ")
		switch {
		case strings.HasPrefix(line, "#") && strings.Contains(line, "is incompatible"):
			return nil, errIncompatible
		case line == "" || strings.HasPrefix(line, "#"):
			continue
		case line == "COMMIT":
			table = nil
			continue
		case strings.HasPrefix(line, "*") && len(line) > 1:
			table = map[string][]string{}
			out[line[1:]] = table
			continue
		}
		if err := parseChainLine(table, line); err != nil {
			return nil, fmt.Errorf("line %d of iptables-save: %w", n+1, err)
		}
	}
	return out, nil
}

func parseChainLine(table map[string][]string, line string) error {
	if table == nil {
		return fmt.Errorf("%q outside of a table", line)
	}
	if rest, ok := strings.CutPrefix(line, ":"); ok {
		name, _, _ := strings.Cut(rest, " ")
		if name == "" {
			return fmt.Errorf("%q declares a chain without a name", line)
		}
		if _, dup := table[name]; !dup {
			table[name] = nil
		}
		return nil
	}
	rest, ok := strings.CutPrefix(line, "-A ")
	if !ok {
		return fmt.Errorf("%q is neither a chain nor a rule", line)
	}
	name, rule, _ := strings.Cut(rest, " ")
	if _, declared := table[name]; !declared {
		return fmt.Errorf("rule in chain %q, which is not declared", name)
	}
	table[name] = append(table[name], rule)
	return nil
}

// parsePolicies reads ":CHAIN POLICY [packets:bytes]" from what iptables-save prints of one table.
func parsePolicies(text []byte) map[string]string {
	out := map[string]string{}
	for line := range strings.Lines(string(text)) {
		if rest, ok := strings.CutPrefix(line, ":"); ok {
			if words := strings.Fields(rest); len(words) > 1 && words[1] != "-" {
				out[words[0]] = words[1]
			}
		}
	}
	return out
}

// parseCounts reads the packets of the last rule of each chain from what iptables-save -c prints: "[packets:bytes] -A
// CHAIN rule".
func parseCounts(text []byte) map[string]uint64 {
	out := map[string]uint64{}
	for line := range strings.Lines(string(text)) {
		counts, rest, ok := strings.Cut(line, "] -A ")
		counts, bracket := strings.CutPrefix(counts, "[")
		packets, _, _ := strings.Cut(counts, ":")
		n, err := strconv.ParseUint(packets, 10, 64)
		if !ok || !bracket || err != nil {
			continue
		}
		chain, _, _ := strings.Cut(strings.TrimSpace(rest), " ")
		out[chain] = n
	}
	return out
}
