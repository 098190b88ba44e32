package iptables

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/braidnet/braid/internal/desired"
	"github.com/braidnet/braid/internal/desired/xt"
	"github.com/braidnet/braid/netagent/policy/worlds"
)

// simulation is a kernel of one's own: it takes the steps of Plans as the kernel does, and judges packets by the rules and sets
// that it has, so that a test can ask between two steps.
type simulation struct {
	rules map[bool]map[string][]string
	sets  map[string]map[desired.IPSetMember]bool
	words map[string][]string // of rules, which are split once
}

func newSimulation() *simulation {
	m := &simulation{rules: map[bool]map[string][]string{}, sets: map[string]map[desired.IPSetMember]bool{}, words: map[string][]string{}}
	for _, ipv6 := range both {
		m.rules[ipv6] = map[string][]string{"INPUT": {"-j ACCEPT"}, "FORWARD": {"-j ACCEPT"}, "OUTPUT": nil}
	}
	return m
}

func (m *simulation) contents() map[bool]Contents {
	out := map[bool]Contents{}
	for _, ipv6 := range both {
		out[ipv6] = Contents{Rules: maps.Clone(m.rules[ipv6]), Sets: map[string]Set{}}
	}
	for name, members := range m.sets {
		ipv6 := strings.HasPrefix(name, families[true].sets)
		out[ipv6].Sets[name] = Set{desired.IPSet{Name: name, IPv6: ipv6}, slices.Collect(maps.Keys(members))}
	}
	return out
}

// take carries out a plan, members one by one, and calls seen after each step.
func (m *simulation) take(p Plan, seen func(step string)) error {
	if err := m.change(p.Before, seen); err != nil {
		return err
	}
	for ipv6, text := range p.Restore {
		if err := m.restore(ipv6, text); err != nil {
			return fmt.Errorf("%w\n%s", err, text)
		}
		seen("restore")
	}
	return m.change(p.After, seen)
}

func (m *simulation) change(ops []desired.IPSetOp, seen func(string)) error {
	for _, op := range ops {
		set, there := m.sets[op.Set.Name]
		switch {
		case op.Verb == desired.IPSetCreate && !there:
			m.sets[op.Set.Name] = map[desired.IPSetMember]bool{}
		case op.Verb == desired.IPSetDestroy:
			for _, chains := range m.rules {
				for chain, rules := range chains {
					for _, r := range rules {
						if slices.Contains(xt.Words(r), op.Set.Name) {
							return fmt.Errorf("destroy %s: %s refers to it: %s", op.Set.Name, chain, r)
						}
					}
				}
			}
			delete(m.sets, op.Set.Name)
		case !there:
			return fmt.Errorf("%s %s: it is not there", op.Verb, op.Set.Name)
		}
		for _, x := range op.Members {
			if have := set[x]; have == (op.Verb == desired.IPSetAdd) {
				return fmt.Errorf("%s %s: %s is there: %v", op.Verb, op.Set.Name, x, have)
			}
			if op.Verb == desired.IPSetAdd {
				set[x] = true
			} else {
				delete(set, x)
			}
			seen(fmt.Sprintf("%s %s %s", op.Verb, op.Set.Name, x))
		}
	}
	return nil
}

// restore takes the input of iptables-restore --noflush.
func (m *simulation) restore(ipv6 bool, text string) error {
	chains := map[string][]string{}
	for name, rules := range m.rules[ipv6] {
		chains[name] = slices.Clone(rules)
	}
	for _, line := range strings.Split(strings.TrimSuffix(text, "\n"), "\n") {
		verb, rest, _ := strings.Cut(line, " ")
		name, rule, _ := strings.Cut(rest, " ")
		switch {
		case line[0] == '*' || line == "COMMIT":
		case line[0] == ':':
			chains[verb[1:]] = nil
		case verb == "-A":
			chains[name] = append(chains[name], rule)
		case verb == "-I":
			chains[name] = append([]string{strings.TrimPrefix(rule, "1 ")}, chains[name]...)
		case verb == "-D":
			at, err := strconv.Atoi(rule)
			if err != nil || at > len(chains[name]) {
				return fmt.Errorf("%q", line)
			}
			chains[name] = slices.Delete(chains[name], at-1, at)
		case verb == "-X" && len(chains[name]) == 0:
			delete(chains, name)
		default:
			return fmt.Errorf("%q", line)
		}
	}
	for chain, rules := range chains {
		for _, r := range rules {
			w := xt.Words(r)
			if to := xt.LeadsTo(r); strings.HasPrefix(to, xt.PolicyPrefix) {
				if _, there := chains[to]; !there {
					return fmt.Errorf("%s leads to %s, which is not there", chain, to)
				}
			}
			for i, x := range w {
				if x == "--match-set" && m.sets[w[i+1]] == nil {
					return fmt.Errorf("%s refers to set %s, which is not there", chain, w[i+1])
				}
			}
		}
	}
	m.rules[ipv6] = chains
	return nil
}

// passes judges the first packet of a connection, forwarded between devices.
func (m *simulation) passes(p worlds.Packet, in, out string) bool {
	verdict, _ := m.walk("FORWARD", p, in, out)
	return verdict == "ACCEPT"
}

// walk returns the verdict of a chain, "" when the packet comes back from it.
func (m *simulation) walk(chain string, p worlds.Packet, in, out string) (verdict string, depth int) {
	for _, r := range m.rules[p.Src.Is6()][chain] {
		w := m.words[r]
		if w == nil {
			w = xt.Words(r)
			m.words[r] = w
		}
		if !m.matches(w, p, in, out) {
			continue
		}
		switch to := target(w); {
		case to == "RETURN":
			return "", depth
		case to == "NFLOG":
		case strings.HasPrefix(to, xt.PolicyPrefix):
			if v, _ := m.walk(to, p, in, out); v != "" || strings.Contains(r, " -g ") {
				return v, depth
			}
		default:
			return to, depth
		}
	}
	return "", depth
}

func target(w []string) string {
	for i := len(w) - 1; i > 0; i-- {
		if w[i-1] == "-j" || w[i-1] == "-g" {
			return w[i]
		}
	}
	return ""
}

func (m *simulation) matches(w []string, p worlds.Packet, in, out string) bool {
	device := func(name, pattern string) bool {
		if prefix, any := strings.CutSuffix(pattern, "+"); any {
			return strings.HasPrefix(name, prefix)
		}
		return name == pattern
	}
	for i := 0; i+1 < len(w); i++ {
		ok := true
		switch arg := w[i+1]; w[i] {
		case "-i":
			ok = device(in, arg)
		case "-o":
			ok = device(out, arg)
		case "-p":
			ok = strings.EqualFold(arg, p.Protocol.String())
		case "--ctstate":
			return false // neither an answer nor translated
		case "--match-set":
			ok = m.sets[arg][member(p, w[i+2])]
			if strings.Contains(arg, "-ranges-") {
				ok = m.inRange(arg, member(p, w[i+2]).Prefix.Addr())
			}
		case "--dports":
			ok = slices.ContainsFunc(strings.Split(arg, ","), func(x string) bool {
				from, to, found := strings.Cut(x, ":")
				if !found {
					to = from
				}
				a, _ := strconv.Atoi(from)
				b, _ := strconv.Atoi(to)
				return a <= int(p.Port) && int(p.Port) <= b
			})
		}
		if !ok {
			return false
		}
	}
	return true
}

func member(p worlds.Packet, ends string) desired.IPSetMember {
	addr := map[string]netip.Addr{"src": p.Src, "dst": p.Dst, "dst,dst": p.Dst}[ends]
	x := host(addr)
	if ends == "dst,dst" {
		x.Protocol, x.Port = uint8(p.Protocol), p.Port
	}
	return x
}

func (m *simulation) inRange(set string, a netip.Addr) bool {
	for x := range m.sets[set] {
		if x.Prefix.Contains(a) {
			return true
		}
	}
	return false
}
