package policy

import (
	"net/netip"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/braidnet/braid/internal/model"
)

func auditedNamespace(name string) model.Change {
	return set1(&corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name, Annotations: map[string]string{audit: "true"}}})
}

const audit = "braid.network/policy-audit"

// faultWorld is a shop of which two policies, "good" and "bad", let different clients to the same pod.
func faultWorld() *Compiler {
	c := NewCompiler("n1")
	c.Apply(1, []model.Change{
		setNamespace("shop"),
		setPod("shop/api", "app: api", "nodeName: n1", "podIP: 10.0.0.1"),
		setPod("shop/web", "app: web", "nodeName: n2", "podIP: 10.0.0.2"),
		setPolicy("shop/bad", "podSelector: {matchLabels: {app: api}}, policyTypes: [Ingress, Egress], ingress: [{from: [{ipBlock: {cidr: 192.0.2.0/24}}]}], egress: [{}]"),
		setPolicy("shop/good", "podSelector: {matchLabels: {app: api}}, ingress: [{from: [{podSelector: {matchLabels: {app: web}}}]}]"),
	})
	c.Flush()
	return c
}

// TestClosedPolicies: a policy that is closed isolates its pods and allows nothing, whatever others allow; it
// opens when it is reopened, and when it changes.
func TestClosedPolicies(t *testing.T) {
	c := faultWorld()
	bad := []model.Key{{Namespace: "shop", Name: "bad"}}
	check := func(when string, open bool) {
		t.Helper()
		for _, tt := range []struct {
			src, dst string
			want     bool
		}{{"192.0.2.1", "10.0.0.1", open}, {"10.0.0.1", "192.0.2.1", open}, {"10.0.0.2", "10.0.0.1", true}, {"198.51.100.1", "10.0.0.1", false}} {
			if v := c.Eval(tcp(tt.src, tt.dst, 80)); v.Allowed != tt.want {
				t.Errorf("%s: %s to %s: %v, %v", when, tt.src, tt.dst, v.Egress, v.Ingress)
			}
		}
	}
	check("at first", true)
	c.Close(bad, "no space")
	d := c.Flush()
	if len(d.Sections) != 2 || len(d.Targets) > 0 || len(d.Chains) > 0 {
		t.Errorf("closing a policy changed %+v", d)
	}
	check("closed", false)
	if v := c.Eval(tcp("192.0.2.1", "10.0.0.1", 80)); !strings.HasSuffix(v.Ingress.String(), "isolated for ingress by shop/bad, shop/good, and shop/bad is closed: no space") {
		t.Errorf("why: %s", v.Ingress)
	}
	if f := c.Faults(); len(f) != 1 || f[0].String() != "policy shop/bad is closed, its rules allow nothing: no space" {
		t.Errorf("faults: %v", f)
	}
	c.Reopen(bad)
	c.Flush()
	check("reopened", true)
	c.Close(bad, "no space")
	c.Flush()
	c.Apply(2, []model.Change{setPolicy("shop/bad", "podSelector: {matchLabels: {app: api}}, policyTypes: [Ingress, Egress], ingress: [{from: [{ipBlock: {cidr: 192.0.2.0/25}}]}], egress: [{}]")})
	c.Flush()
	check("changed", true)
	if f := c.Faults(); len(f) > 0 {
		t.Errorf("faults: %v", f)
	}
}

// TestTooLargePolicy: a policy that is too large in one direction is closed in both, in one Flush.
func TestTooLargePolicy(t *testing.T) {
	c := faultWorld()
	var rule networkingv1.NetworkPolicyIngressRule
	for i := range maxRanges/2 + 1 { // each is two ranges
		a := netip.AddrFrom4([4]byte{100, byte(i >> 13), byte(i >> 5), byte(i << 3)})
		rule.From = append(rule.From, networkingv1.NetworkPolicyPeer{IPBlock: &networkingv1.IPBlock{CIDR: a.String() + "/30", Except: []string{a.Next().String() + "/32"}}})
	}
	p := &networkingv1.NetworkPolicy{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "bad"}}
	p.Spec.PodSelector.MatchLabels = map[string]string{"app": "api"}
	p.Spec.Ingress, p.Spec.Egress = []networkingv1.NetworkPolicyIngressRule{rule}, []networkingv1.NetworkPolicyEgressRule{{}}
	for range 2 { // also when it is there already
		c.Apply(2, []model.Change{set1(p)})
		c.Flush()
		for _, p := range []Packet{tcp("100.0.0.0", "10.0.0.1", 80), tcp("10.0.0.1", "100.0.0.0", 80)} {
			if v := c.Eval(p); v.Allowed {
				t.Errorf("%v: allowed", p)
			}
		}
		if f := c.Faults(); len(f) != 1 || !f[0].Closed || !strings.Contains(f[0].Why, "its ingress rules have 32770 ranges of addresses") {
			t.Errorf("faults: %v", f)
		}
	}
}

// TestFaultyPolicy: what could not be understood is a fault; the rest is in force.
func TestFaultyPolicy(t *testing.T) {
	c := faultWorld()
	bad := setPolicy("shop/bad", "podSelector: {matchLabels: {app: api}}, ingress: [{from: [{ipBlock: {cidr: 192.0.2.0/24}}]}]")
	p := *bad.New.(*model.NetworkPolicy)
	p.Faults = []string{`spec.ingress[1].from[0].ipBlock.cidr: is "nonsense"`}
	bad.New = &p
	c.Apply(2, []model.Change{bad})
	c.Flush()
	if !c.Eval(tcp("192.0.2.1", "10.0.0.1", 80)).Allowed {
		t.Error("what was understood is not in force")
	}
	if f := c.Faults(); len(f) != 1 || f[0].String() != `policy shop/bad allows less than it says: spec.ingress[1].from[0].ipBlock.cidr: is "nonsense"` {
		t.Errorf("faults: %v", f)
	}
}

// TestAudit: a namespace is put under audit, and taken out of it, by one change; other namespaces are enforced.
func TestAudit(t *testing.T) {
	c := faultWorld()
	denied := tcp("198.51.100.1", "10.0.0.1", 80)
	for range 2 {
		c.Apply(2, []model.Change{auditedNamespace("shop")})
		c.Flush()
		v := c.Eval(denied)
		if !v.Allowed || !v.Ingress.Audited || v.Ingress.String() != "allowed only because its namespace is under audit: shop/api is isolated for ingress by shop/bad, shop/good, and no rule matches" {
			t.Errorf("under audit: %+v", v)
		}
		if v := c.Eval(tcp("10.0.0.2", "10.0.0.1", 80)); v.Ingress.Audited || v.Ingress.String() != "allowed by shop/good (ingress, rule 0)" {
			t.Errorf("what a rule allows: %v", v.Ingress)
		}
		if got := c.Audited(); !slices.Equal(got, []string{"shop"}) {
			t.Errorf("under audit: %v", got)
		}
		c.Apply(3, []model.Change{setNamespace("shop")})
		c.Flush()
		if c.Eval(denied).Allowed || len(c.Audited()) > 0 {
			t.Error("still under audit")
		}
	}
}

// TestDropInWords: a packet that met the end of a chain is explained, and only while that is true.
func TestDropInWords(t *testing.T) {
	c := faultWorld()
	mark := func(dir Direction) Mark {
		for _, x := range c.All().Chains {
			if x.Direction == dir {
				return MarkOf(x)
			}
		}
		t.Fatalf("no chain for %s", dir)
		return Mark{}
	}
	icmp := tcp("198.51.100.1", "10.0.0.1", 0)
	icmp.Protocol = 1
	gre := icmp
	gre.Protocol = 47
	for _, tt := range []struct {
		mark Mark
		p    Packet
		want string
		ok   bool
	}{
		{mark(Ingress), tcp("198.51.100.1", "10.0.0.1", 8443), "drop 198.51.100.1 → shop/api:8443/tcp by shop/bad, shop/good (ingress, no rule matches)", true},
		{mark(Ingress), icmp, "drop 198.51.100.1 → shop/api/icmp by shop/bad, shop/good (ingress, no rule matches)", true},
		{mark(Ingress), gre, "drop 198.51.100.1 → shop/api/protocol 47 by shop/bad, shop/good (ingress, no rule matches)", true},
		{mark(Ingress), tcp("10.0.0.2", "10.0.0.1", 80), "drop shop/web → shop/api:80/tcp by shop/bad, shop/good (ingress, no rule matches)", false},
		{Mark{Direction: Egress}, tcp("10.0.0.9", "2001:db8::1", 80), "drop 10.0.0.9 → [2001:db8::1]:80/tcp (egress, 10.0.0.9 is no pod that is known here)", true},
		{Mark{Direction: Egress}, tcp("10.0.0.1", "2001:db8::1", 80), "drop shop/api → [2001:db8::1]:80/tcp (egress, 10.0.0.1 is no pod that is known here)", false},
	} {
		again, ok := ParseMark(tt.mark.String())
		if !ok || again != tt.mark || len(tt.mark.String()) > 63 {
			t.Errorf("mark %q is read as %+v, %v", tt.mark, again, ok)
		}
		if d, ok := c.Drop(tt.mark, tt.p); d.String() != tt.want || ok != tt.ok {
			t.Errorf("%v: %v\n%s\nwant\n%s", tt.p, ok, d, tt.want)
		}
	}
	c.Apply(2, []model.Change{auditedNamespace("shop")})
	c.Flush()
	if d, ok := c.Drop(mark(Ingress), tcp("198.51.100.1", "10.0.0.1", 80)); !ok || !strings.HasPrefix(d.String(), "would drop (audit) 198.51.100.1 →") {
		t.Errorf("under audit: %v, %s", ok, d)
	}
	for _, text := range []string{"", "braid", "braid ingress deny", "braid sideways deny x", "braid egress maybe x", "other egress deny x", "braid egress deny x y"} {
		if m, ok := ParseMark(text); ok {
			t.Errorf("%q is read as %+v", text, m)
		}
	}
}
