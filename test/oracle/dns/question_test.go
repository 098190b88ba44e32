package dns

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"strings"

	"github.com/miekg/dns"
)

// question is one query and how it is sent.
type question struct {
	variant *variant
	name    string
	typ     uint16
	class   uint16
	tcp     bool
	edns    uint16 // UDP size that is announced; 0 = no EDNS
	do      bool
	options string // of EDNS, by letters: n(SID) c(ookie) s(ubnet) k(eepalive) p(adding) x (unknown)
	noRD    bool
	cd, ad  bool
}

func (q question) String() string {
	var how []string
	if q.tcp {
		how = append(how, "+tcp")
	}
	if q.edns > 0 {
		how = append(how, fmt.Sprintf("+bufsize=%d", q.edns))
	}
	for _, f := range []struct {
		on   bool
		text string
	}{{q.do, "+do"}, {q.options != "", "+options=" + q.options}, {q.noRD, "+norecurse"}, {q.cd, "+cd"}, {q.ad, "+ad"}} {
		if f.on {
			how = append(how, f.text)
		}
	}
	return fmt.Sprintf("[%s] %s %s %s %s", q.variant.name, q.name, dns.Class(q.class), dns.Type(q.typ), strings.Join(how, " "))
}

func (q question) msg() *dns.Msg {
	m := new(dns.Msg)
	m.Id = dns.Id()
	m.RecursionDesired, m.CheckingDisabled, m.AuthenticatedData = !q.noRD, q.cd, q.ad
	m.Question = []dns.Question{{Name: q.name, Qtype: q.typ, Qclass: q.class}}
	if q.edns == 0 {
		return m
	}
	m.SetEdns0(q.edns, q.do)
	o := m.IsEdns0()
	for _, letter := range q.options {
		switch letter {
		case 'n':
			o.Option = append(o.Option, &dns.EDNS0_NSID{Code: dns.EDNS0NSID})
		case 'c':
			o.Option = append(o.Option, &dns.EDNS0_COOKIE{Code: dns.EDNS0COOKIE, Cookie: "0011223344556677"})
		case 's':
			o.Option = append(o.Option, &dns.EDNS0_SUBNET{Code: dns.EDNS0SUBNET, Family: 1, SourceNetmask: 24, Address: []byte{192, 0, 2, 0}})
		case 'k':
			o.Option = append(o.Option, &dns.EDNS0_TCP_KEEPALIVE{Code: dns.EDNS0TCPKEEPALIVE})
		case 'p':
			o.Option = append(o.Option, &dns.EDNS0_PADDING{Padding: make([]byte, 7)})
		case 'x':
			o.Option = append(o.Option, &dns.EDNS0_LOCAL{Code: 65001, Data: []byte{1}})
		}
	}
	return m
}

// simpler returns versions of a question with one thing less each, for the report of a difference.
func (q question) simpler() (out []question) {
	add := func(change func(*question)) {
		c := q
		if change(&c); c != q {
			out = append(out, c)
		}
	}
	add(func(c *question) { c.options = "" })
	add(func(c *question) { c.do = false })
	add(func(c *question) { c.edns, c.do, c.options = 0, false, "" })
	add(func(c *question) { c.tcp = false })
	add(func(c *question) { c.noRD, c.cd, c.ad = false, false, false })
	add(func(c *question) { c.class = dns.ClassINET })
	add(func(c *question) { c.name = strings.ToLower(c.name) })
	add(func(c *question) { c.typ = dns.TypeA })
	return out
}

var (
	commonTypes = []uint16{dns.TypeA, dns.TypeA, dns.TypeA, dns.TypeAAAA, dns.TypeAAAA, dns.TypeSRV, dns.TypeSRV, dns.TypeTXT, dns.TypeCNAME, dns.TypePTR}
	otherTypes  = []uint16{dns.TypeNS, dns.TypeSOA, dns.TypeMX, dns.TypeANY, dns.TypeHTTPS, dns.TypeSVCB, dns.TypeCAA, dns.TypeNAPTR, dns.TypeDS,
		dns.TypeDNSKEY, dns.TypeHINFO, dns.TypeNULL, dns.TypeTLSA, dns.TypeAXFR, dns.TypeIXFR, 65280}
	allTypes = []uint16{dns.TypeA, dns.TypeAAAA, dns.TypeSRV, dns.TypeTXT, dns.TypeCNAME, dns.TypePTR, dns.TypeNS, dns.TypeSOA, dns.TypeMX, dns.TypeANY,
		dns.TypeHTTPS, dns.TypeDS, dns.TypeHINFO, dns.TypeAXFR}
)

// ask returns a random question about the cluster.
func (c *cluster) ask(v *variant) question {
	q := question{variant: v, class: dns.ClassINET, name: c.name(v)}
	if q.typ = pick(c.Rand, commonTypes); c.chance(20) {
		q.typ = pick(c.Rand, otherTypes)
	}
	if strings.HasSuffix(q.name, ".arpa.") && c.chance(60) {
		q.typ = dns.TypePTR
	}
	if v.mute(q) {
		q.typ = dns.TypeA
	}
	if c.chance(30) {
		q.name = mixCase(c.Rand, q.name)
	}
	if q.tcp = c.chance(12); c.chance(40) {
		q.edns = pick(c.Rand, []uint16{0, 100, 512, 1232, 1410, 4096, 65535})
		q.do = q.edns > 0 && c.chance(40)
		if q.edns > 0 && c.chance(30) {
			q.options = pick(c.Rand, []string{"n", "c", "s", "k", "p", "x", "nc", "cx"})
		}
	}
	if c.chance(2) {
		q.class = pick(c.Rand, []uint16{dns.ClassCHAOS, dns.ClassANY, dns.ClassHESIOD})
	}
	q.noRD, q.cd, q.ad = c.chance(10), c.chance(5), c.chance(5)
	return q
}

func (c *cluster) name(v *variant) string {
	zone := pick(c.Rand, v.zones)
	switch c.IntN(20) {
	case 0, 1, 2:
		return reverse(c.Rand, pick(c.Rand, c.addrs))
	case 3:
		return relative(pick(c.Rand, handNames), zone)
	case 4:
		return c.damage(relative(pick(c.Rand, c.names), zone))
	}
	return relative(pick(c.Rand, c.names), zone)
}

// mute reports whether the stock server gives no answer at all: in the root zone its PTR records have
// targets that end in two dots. TestSilence asks for one of them.
func (v *variant) mute(q question) bool {
	return v.zones[0] == "." && q.typ == dns.TypePTR && strings.HasSuffix(strings.ToLower(q.name), ".arpa.")
}

func relative(rel, zone string) string {
	switch {
	case zone == externalZone:
		rel = strings.TrimSuffix(rel, "svc")
		if rel = strings.TrimSuffix(rel, "."); rel == "" {
			return zone
		}
	case rel == "":
		return zone
	case zone == ".":
		return rel + "."
	}
	return rel + "." + zone
}

// damage changes a name so that it is most likely nobody's.
func (c *cluster) damage(name string) string {
	labels := dns.SplitDomainName(name)
	if len(labels) < 2 {
		return name
	}
	i := c.IntN(len(labels))
	switch c.IntN(6) {
	case 0:
		labels = append(labels[:i], labels[i+1:]...)
	case 1:
		labels[i] = pick(c.Rand, []string{"x", "*", "_", "-", "a\\.b", "\\000", "\\255", "a\\032b", "\\\\", "_tcp", "svc", "pod", "\\@", "a\\/b", "é"})
	case 2:
		labels = append(labels[:i+1], labels[i:]...)
	case 3:
		j := c.IntN(len(labels))
		labels[i], labels[j] = labels[j], labels[i]
	case 4:
		labels[i] += "x"
	case 5:
		labels = append([]string{pick(c.Rand, []string{"www", "_http", "a-b", "10-0-0-1"})}, labels...)
	}
	out := dns.Fqdn(strings.Join(labels, "."))
	if _, ok := dns.IsDomainName(out); !ok {
		return name
	}
	return out
}

// reverse returns the reverse name of an address, at times one that is not quite right.
func reverse(r *rand.Rand, a netip.Addr) string {
	name, err := dns.ReverseAddr(a.String())
	if err != nil {
		panic(err)
	}
	switch r.IntN(12) {
	case 0:
		return name[strings.IndexByte(name, '.')+1:]
	case 1:
		return "0" + name
	case 2:
		return "1." + name
	}
	return name
}

func mixCase(r *rand.Rand, s string) string {
	b := []byte(s)
	for i, ch := range b {
		if ch >= 'a' && ch <= 'z' && r.IntN(2) == 0 {
			b[i] = ch - 'a' + 'A'
		}
	}
	return string(b)
}
