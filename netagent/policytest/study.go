package policytest

import (
	"errors"
	"fmt"
	"io"
	"net/netip"
	"slices"
	"strings"

	"github.com/braidnet/braid/internal/model"
	"github.com/braidnet/braid/netagent/policy"
)

// Outside is the name of what is neither a pod nor a given address.
const Outside = "outside"

// outside are addresses of documentation (RFC 5737, RFC 3849), which no real policy names.
var outside = map[bool]netip.Addr{true: netip.MustParseAddr("198.51.100.1"), false: netip.MustParseAddr("2001:db8:51:100::1")}

// Options say what a Study is about.
type Options struct {
	Addresses []netip.Addr   // to list besides the pods
	PodCIDRs  []netip.Prefix // where pods without addresses get theirs: at most one per family
	IPv6      bool           // look at IPv6 instead of IPv4
}

// DefaultPodCIDRs are the ranges that most clusters use.
var DefaultPodCIDRs = []netip.Prefix{netip.MustParsePrefix("10.244.0.0/16"), netip.MustParsePrefix("fd00:10:244::/56")}

// Study is what manifests say about who may reach whom.
type Study struct {
	Notes []string // what its reader should know
	Pairs []Pair   // every two ends, sorted by name, and Outside last; of workloads, two of its pods too

	namespaces map[string]*model.Namespace
	policies   []*model.NetworkPolicy
	pods       []*model.Pod
	workloads  map[model.Key]bool // those pods that stand for all of a workload
	compiler   *policy.Compiler
}

// Pair is one direction between two ends: pods by namespace/name, addresses, Outside.
type Pair struct {
	From string       `json:"from"`
	To   string       `json:"to"`
	May  policy.Reach `json:"-"`
	Text string       `json:"may"` // May in words
	Why  []string     `json:"why"` // of a TCP connection to a port of the answer, or to port 1
	// Audited says that some of it is allowed only because a namespace is under audit.
	Audited bool `json:"audited,omitempty"`
}

// end is one end of a pair.
type end struct {
	name string
	addr netip.Addr
	pod  bool
	many bool // it stands for several pods
}

// New studies manifests. Its error names everything that is wrong with them, with file:line.
func New(inputs []Input, o Options) (*Study, error) {
	s := &Study{namespaces: map[string]*model.Namespace{}, workloads: map[model.Key]bool{}, compiler: policy.NewCompiler("")}
	if err := s.read(inputs); err != nil {
		return nil, err
	}
	if err := s.complete(o.PodCIDRs); err != nil {
		return nil, err
	}
	var changes []model.Change
	add := func(o model.Object) { changes = append(changes, model.Change{Ref: o.From().Ref, New: o}) }
	for _, n := range s.namespaces {
		add(n)
	}
	for _, p := range s.pods {
		add(p)
	}
	for _, p := range s.policies {
		add(p)
	}
	s.compiler.Apply(0, changes)
	s.compiler.Flush()
	for _, name := range s.compiler.Audited() {
		s.Notes = append(s.Notes, fmt.Sprintf("namespace %s is under audit (annotation braid.network/policy-audit): policies deny its pods nothing", name))
	}
	ends := s.ends(o)
	if !slices.ContainsFunc(ends, func(e end) bool { return e.pod }) {
		return nil, errors.New("nobody to reach: the manifests have no pod and no workload with an address of the family (name their files too)")
	}
	for _, from := range ends {
		for _, to := range ends {
			if (from != to || from.many) && (from.pod || to.pod) {
				s.Pairs = append(s.Pairs, s.pair(from, to))
			}
		}
	}
	return s, nil
}

func (s *Study) ends(o Options) (out []end) {
	for _, p := range s.pods {
		i := slices.IndexFunc(p.IPs, func(a netip.Addr) bool { return a.Is4() != o.IPv6 })
		if i < 0 {
			s.Notes = append(s.Notes, fmt.Sprintf("%s has no address of the family, so it is not listed", p.Key))
			continue
		}
		out = append(out, end{p.Key.String(), p.IPs[i], true, s.workloads[p.Key]})
	}
	for _, a := range o.Addresses {
		out = append(out, end{name: a.String(), addr: a})
	}
	return append(out, end{name: Outside, addr: outside[!o.IPv6]})
}

func (s *Study) pair(from, to end) Pair {
	p := Pair{From: from.name, To: to.name, May: s.compiler.Reach(from.addr, to.addr)}
	p.Text = p.May.String()
	q := policy.Packet{Src: from.addr, Dst: to.addr, Protocol: model.TCP, Port: 1}
	p.Audited = s.compiler.Eval(q).Audited()
	if len(p.May.Ports) > 0 {
		q.Protocol, q.Port = p.May.Ports[0].Protocol, max(p.May.Ports[0].From, 1)
	}
	v := s.compiler.Eval(q)
	for _, step := range []policy.Step{v.Egress, v.Ingress} {
		if step.Pod.Name != "" && (v.Allowed || !step.Allowed) {
			p.Why = append(p.Why, step.String())
		}
	}
	return p
}

// Print writes one line per pair: from, to, what is allowed and, with why, the reason. Without all, pairs
// between which everything is allowed are left out, and counted.
func (s *Study) Print(w io.Writer, all, why bool) error {
	var b strings.Builder
	wide := [2]int{len("FROM"), len("TO")}
	shown, open := 0, 0
	for _, p := range s.Pairs {
		if p.May.All && !all && !p.Audited {
			open++
			continue
		}
		shown++
		wide[0], wide[1] = max(wide[0], len(p.From)), max(wide[1], len(p.To))
	}
	line := func(from, to, what string) { fmt.Fprintf(&b, "%-*s  %-*s  %s\n", wide[0], from, wide[1], to, what) }
	if shown > 0 {
		line("FROM", "TO", "ALLOWED")
	}
	for _, p := range s.Pairs {
		if p.May.All && !all && !p.Audited {
			continue
		}
		text := p.Text
		if p.Audited {
			text += "  # only because of an audit"
		}
		line(p.From, p.To, text)
		if why {
			for _, reason := range p.Why {
				fmt.Fprintf(&b, "    # %s\n", reason)
			}
		}
	}
	if open > 0 {
		fmt.Fprintf(&b, "# everything is allowed between %d other pairs (--all lists them)\n", open)
	}
	_, err := io.WriteString(w, b.String())
	return err
}
