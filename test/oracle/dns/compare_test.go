package dns

import (
	"fmt"
	"slices"
	"strings"

	"github.com/miekg/dns"
)

// view is an answer in a form that can be compared: sections are sorted, because their order is
// arbitrary, and SOA serials are 0 or 1, because they are clocks.
type view struct {
	rcode  int
	header string
	opt    string
	answer []string
	ns     []string
	extra  []string
	tc     bool
	size   int
	err    string // there was no answer
}

func newView(m *dns.Msg, size int, err error) view {
	if err != nil {
		return view{err: "no answer: " + strings.SplitN(err.Error(), " ", 2)[0]}
	}
	v := view{rcode: m.Rcode, tc: m.Truncated, size: size}
	v.header = fmt.Sprintf("opcode=%d qr=%t aa=%t tc=%t rd=%t ra=%t z=%t ad=%t cd=%t question=%v", m.Opcode, m.Response, m.Authoritative, m.Truncated,
		m.RecursionDesired, m.RecursionAvailable, m.Zero, m.AuthenticatedData, m.CheckingDisabled, m.Question)
	v.answer, v.ns = lines(m.Answer), lines(m.Ns)
	var extra []dns.RR
	for _, rr := range m.Extra {
		if o, ok := rr.(*dns.OPT); ok {
			v.opt += o.String()
			v.rcode |= o.ExtendedRcode()
		} else {
			extra = append(extra, rr)
		}
	}
	v.extra = lines(extra)
	return v
}

func lines(rrs []dns.RR) (out []string) {
	for _, rr := range rrs {
		if soa, ok := rr.(*dns.SOA); ok {
			// Stock CoreDNS leaves those of clusterset and external zones at 0; TestSerials looks at ours.
			if soa.Serial = min(soa.Serial, 1); strings.HasSuffix(strings.ToLower(soa.Ns), ".clusterset.local.") || strings.HasPrefix(strings.ToLower(soa.Ns), "ns1.dns.") {
				soa.Serial = 1
			}
		}
		out = append(out, strings.ReplaceAll(rr.String(), "\t", " "))
	}
	slices.Sort(out)
	return out
}

// diff returns the names of the parts that differ.
func (v view) diff(w view) (out []string) {
	if v.err != "" || w.err != "" {
		return []string{"being answered"}
	}
	for _, part := range []struct {
		name string
		same bool
	}{
		{"rcode", v.rcode == w.rcode}, {"header", v.header == w.header}, {"edns", v.opt == w.opt},
		{"answer", v.tc && w.tc || slices.Equal(v.answer, w.answer)}, {"authority", slices.Equal(v.ns, w.ns)},
		{"additional", v.tc && w.tc || slices.Equal(v.extra, w.extra)},
		// Sizes tell whether names are compressed. What is dropped from an answer is arbitrary, and so its size.
		{"size", v.tc && w.tc || v.size == w.size},
	} {
		if !part.same {
			out = append(out, part.name)
		}
	}
	return out
}

func (v view) String() string {
	if v.err != "" {
		return "    " + v.err + "\n"
	}
	var b strings.Builder
	fmt.Fprintf(&b, "    %s %s size=%d\n", dns.RcodeToString[v.rcode], v.header, v.size)
	for _, s := range []struct {
		name string
		rrs  []string
	}{{"answer", v.answer}, {"authority", v.ns}, {"additional", v.extra}} {
		for i, rr := range s.rrs {
			if i == 12 {
				fmt.Fprintf(&b, "    %s: ... %d in all\n", s.name, len(s.rrs))
				break
			}
			fmt.Fprintf(&b, "    %s: %s\n", s.name, rr)
		}
	}
	if v.opt != "" {
		fmt.Fprintf(&b, "    edns: %s\n", strings.TrimSpace(strings.ReplaceAll(v.opt, "\n", " ")))
	}
	return b.String()
}

// pair asks both servers of one variant.
type pair struct{ stock, ours client }

func newPair(v *variant) *pair {
	return &pair{client{addr: v.stock}, client{addr: v.ours}}
}

func (p *pair) close() {
	for _, c := range []*client{&p.stock, &p.ours} {
		c.close(false)
		c.close(true)
	}
}

// exchange is a question with both answers.
type exchange struct {
	pair        *pair
	q           question
	stock, ours view
}

func (p *pair) ask(q question) *exchange {
	return &exchange{pair: p, q: q, stock: newView(p.stock.ask(q)), ours: newView(p.ours.ask(q))}
}

// asked returns the stock server's answer to the same question with another name and type, over TCP
// so that it is complete.
func (x *exchange) asked(name string, typ uint16) view {
	q := x.q
	q.name, q.typ, q.tcp, q.class = name, typ, true, dns.ClassINET
	return newView(x.pair.stock.ask(q))
}

// verdict says why the answers may differ; "" when they are equal, and not ok when they must not.
func (x *exchange) verdict() (reason string, ok bool) {
	if x.stock.err != "" || x.ours.err != "" {
		return "", false
	}
	if len(x.stock.diff(x.ours)) == 0 {
		return "", true
	}
	for _, a := range allowed {
		if a.applies(x) {
			return a.reason, true
		}
	}
	return "", false
}

// shrunk returns the simplest question that still shows a difference which is not allowed.
func (x *exchange) shrunk() *exchange {
	for again := true; again; {
		again = false
		for _, q := range x.q.simpler() {
			y := x.pair.ask(q)
			if _, ok := y.verdict(); !ok {
				x, again = y, true
				break
			}
		}
	}
	return x
}

func (x *exchange) String() string {
	return fmt.Sprintf("%s differs in %s\n  stock\n%s  ours\n%s", x.q, strings.Join(x.stock.diff(x.ours), ", "), x.stock, x.ours)
}
