package policytest

import (
	"fmt"
	"slices"
	"strings"

	"github.com/braidnet/braid/netagent/policy"
)

// expectation is one line of a file: between two ends exactly this is allowed.
type expectation struct {
	line           int
	from, to, what string
}

// Any stands for every end that no line names in that place together with the other one.
const Any = "*"

// Check compares the study with a file of expectations, lines such as Print writes: from, to, what is
// allowed. An end may be "*". Empty lines, what follows "#", and the line of headings are skipped. It
// returns one text for each pair that is otherwise, and an error for a file that is no such file.
func (s *Study) Check(name string, data []byte) (wrong []string, err error) {
	list, err := s.parse(name, data)
	if err != nil {
		return nil, err
	}
	if len(list) == 0 { // not even a pipeline that lost its file should be told that all is well
		return nil, fmt.Errorf("%s: nothing is expected in it: write a line FROM TO and what is allowed for each pair", name)
	}
	exact := map[[2]string]bool{}
	for _, e := range list {
		exact[[2]string{e.from, e.to}] = true
	}
	for _, e := range list {
		for _, p := range s.Pairs {
			if e.from != Any && e.from != p.From || e.to != Any && e.to != p.To {
				continue
			}
			if (e.from == Any || e.to == Any) && narrower(exact, e, p) {
				continue
			}
			if e.what != p.Text {
				wrong = append(wrong, fmt.Sprintf("%s:%d: %s -> %s: expected %s, and it is %s: %s", name, e.line, p.From, p.To, e.what, p.Text, strings.Join(p.Why, "; ")))
			}
		}
	}
	return wrong, nil
}

// narrower reports whether a line that says more about a pair's ends than e stands beside it.
func narrower(exact map[[2]string]bool, e expectation, p Pair) bool {
	if exact[[2]string{p.From, p.To}] {
		return true
	}
	return e.from == Any && e.to == Any && (exact[[2]string{p.From, Any}] || exact[[2]string{Any, p.To}])
}

func (s *Study) parse(name string, data []byte) (out []expectation, err error) {
	ends := map[string]bool{Any: true}
	for _, p := range s.Pairs {
		ends[p.From], ends[p.To] = true, true
	}
	seen := map[[2]string]int{}
	for i, text := range strings.Split(string(data), "\n") {
		text, _, _ = strings.Cut(text, "#")
		words := strings.Fields(text)
		if len(words) == 0 || slices.Equal(words, []string{"FROM", "TO", "ALLOWED"}) {
			continue
		}
		e := expectation{line: i + 1}
		if len(words) < 3 {
			return nil, fmt.Errorf("%s:%d: %q is no expectation: write FROM TO and what is allowed: all, none, or ports such as 80/TCP", name, e.line, strings.TrimSpace(text))
		}
		e.from, e.to = words[0], words[1]
		may, err := policy.ParseReach(strings.Join(words[2:], " "))
		if err != nil {
			return nil, fmt.Errorf("%s:%d: %w", name, e.line, err)
		}
		e.what = may.String()
		for _, n := range []string{e.from, e.to} {
			if !ends[n] {
				return nil, fmt.Errorf("%s:%d: there is no %q: use namespace/name of a pod or workload, an address given with --address, %s, or %s", name, e.line, n, Outside, Any)
			}
		}
		key := [2]string{e.from, e.to}
		if first := seen[key]; first > 0 {
			return nil, fmt.Errorf("%s:%d: %s -> %s stands in line %d already", name, e.line, e.from, e.to, first)
		}
		seen[key] = e.line
		out = append(out, e)
	}
	return out, nil
}
