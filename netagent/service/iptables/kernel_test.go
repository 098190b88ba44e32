package iptables

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/braidnet/braid/internal/desired/xt"
)

// fakeKernel takes the input of iptables-restore --noflush with the kernel's rules about chains: a
// table is taken whole or not at all, a rule may only lead to a chain that exists, a chain may only
// go when it is empty and nothing leads to it.
type fakeKernel Saved

func newFakeKernel() fakeKernel {
	return fakeKernel{
		"raw":    {"PREROUTING": {"-j RETURN"}, "OUTPUT": nil},
		"nat":    {"PREROUTING": {"-j FOREIGN"}, "INPUT": nil, "OUTPUT": nil, "POSTROUTING": nil, "FOREIGN": {"-p tcp -j RETURN"}},
		"filter": {"INPUT": nil, "FORWARD": {"-p tcp -m tcp --dport 9 -j DROP"}, "OUTPUT": nil},
	}
}

func (k fakeKernel) load(input string) error {
	var name string
	var table map[string][]string
	for n, line := range strings.Split(strings.TrimSuffix(input, "\n"), "\n") {
		verb, rest, _ := strings.Cut(line, " ")
		chain, rule, _ := strings.Cut(rest, " ")
		var err error
		switch {
		case verb[0] == '*':
			name = verb[1:]
			table = map[string][]string{}
			for c, rules := range k[name] {
				table[c] = slices.Clone(rules)
			}
		case verb[0] == ':':
			table[verb[1:]] = nil
		case verb == "COMMIT":
			k[name] = table
		case verb == "-A":
			table[chain], err = append(table[chain], rule), checkTarget(table, rule)
		case verb == "-I":
			table[chain], err = slices.Insert(table[chain], 0, strings.TrimPrefix(rule, "1 ")), checkTarget(table, rule)
		case verb == "-D":
			at := slices.Index(table[chain], rule)
			if at < 0 {
				return fmt.Errorf("line %d: no such rule: %s", n+1, line)
			}
			table[chain] = slices.Delete(table[chain], at, at+1)
		case verb == "-X":
			err = checkUnused(table, chain)
			delete(table, chain)
		default:
			err = fmt.Errorf("unknown command")
		}
		if err != nil {
			return fmt.Errorf("line %d %q: %w", n+1, line, err)
		}
	}
	return nil
}

var builtinTargets = []string{"RETURN", "ACCEPT", "DROP", "REJECT", "MARK", "MASQUERADE", "DNAT"}

func checkTarget(table map[string][]string, rule string) error {
	to := xt.LeadsTo(rule)
	if _, ok := table[to]; !ok && !slices.Contains(builtinTargets, to) {
		return fmt.Errorf("no chain or target %q", to)
	}
	return nil
}

func checkUnused(table map[string][]string, chain string) error {
	if rules, ok := table[chain]; !ok || len(rules) > 0 {
		return fmt.Errorf("absent or not empty")
	}
	for name, rules := range table {
		for _, r := range rules {
			if strings.Contains(r, chain) && xt.LeadsTo(r) == chain {
				return fmt.Errorf("chain %s leads to it", name)
			}
		}
	}
	return nil
}

// ours returns the chains with our prefix, one line each, to compare kernels.
func (k fakeKernel) ours() string {
	var out []string
	for _, t := range slices.Sorted(maps.Keys(k)) {
		for _, c := range slices.Sorted(maps.Keys(k[t])) {
			out = append(out, t+" "+c+"\n\t"+strings.Join(k[t][c], "\n\t"))
		}
	}
	return strings.Join(out, "\n")
}

// reached prints what packets can come to: the chains that are not ours, and all that they lead to.
func (k fakeKernel) reached() string {
	var out strings.Builder
	for _, table := range slices.Sorted(maps.Keys(k)) {
		seen := map[string]bool{}
		var visit func(chain string)
		visit = func(chain string) {
			if rules, there := k[table][chain]; there && !seen[chain] {
				seen[chain] = true
				fmt.Fprintln(&out, table, chain, rules)
				for _, x := range rules {
					visit(target(x))
				}
			}
		}
		for _, chain := range slices.Sorted(maps.Keys(k[table])) {
			if !strings.HasPrefix(chain, Prefix) {
				visit(chain)
			}
		}
	}
	return out.String()
}
