package iptables

import (
	"net/netip"
	"slices"
	"strings"
	"testing"

	networkingv1 "k8s.io/api/networking/v1"

	"sigs.k8s.io/yaml"

	"github.com/braidnet/braid/internal/desired/xt"
	"github.com/braidnet/braid/internal/kernel/ipt"
	"github.com/braidnet/braid/netagent/policy"
	"github.com/braidnet/braid/netagent/policy/worlds"
	"github.com/braidnet/braid/netagent/policy/worlds/probe"
)

// TestPeopleCanList: what iptables-save and ipset print has the names of the objects.
func TestPeopleCanList(t *testing.T) {
	k := newRig(t, ipt.NFT, Options{Log: true})
	w := probe.WithOpenPod(worlds.World{})
	var p networkingv1.NetworkPolicy
	if err := yaml.UnmarshalStrict([]byte(`
metadata: {name: deny, namespace: open}
spec:
  ingress:
  - from: [{ipBlock: {cidr: 10.0.0.0/8, except: [10.1.0.0/16]}}, {podSelector: {matchLabels: {app: web}}}]
    ports: [{port: 80, endPort: 90}, {port: 443}, {port: http}]
`), &p); err != nil {
		t.Fatal(err)
	}
	w.Policies = append(w.Policies, &p)
	k.node.Become(worlds.World{}, w)
	text := k.Print()
	for _, part := range []string{"10.2.0.0/15", "10.0.0.0/16", "--dports 80:90,443", `--comment "open/deny ingress rule 0"`, `--comment "no rule matches: open/deny"`,
		`-A INPUT -m comment --comment "braid policy" -j BRAIDPOL-INPUT`, "--reject-with tcp-reset", "10.244.1.200", `--nflog-prefix "braid ingress deny`} {
		if !strings.Contains(text, part) {
			t.Errorf("the listing lacks %q", part)
		}
	}
	if t.Failed() {
		t.Log(text)
	}
}

// TestDamageIsRepaired: whatever somebody does to rules and sets is seen, and undone.
func TestDamageIsRepaired(t *testing.T) {
	for _, v := range ipt.Variants {
		t.Run(string(v), func(t *testing.T) {
			k := newRig(t, v, Options{})
			d := worlds.NewDice(11, 4)
			w := probe.WithOpenPod(d.World())
			for len(w.Policies) < 3 {
				w = probe.WithOpenPod(d.World())
			}
			k.node.Become(worlds.World{}, w)
			ipt4, ipt6 := "iptables-"+string(v), "ip6tables-"+string(v)
			var some string
			for _, name := range slices.Sorted(func(yield func(string) bool) {
				for name, n := range k.state.Sizes() {
					if n > 0 && strings.Contains(name, "-pods-") && !yield(name) {
						return
					}
				}
			}) {
				some = name
			}
			for _, damage := range []string{ipt4 + " -F", ipt6 + " -F FORWARD", ipt4 + " -P FORWARD ACCEPT; " + ipt4 + " -F BRAIDPOL-FROM", ipt4 + " -I FORWARD 1 -j ACCEPT",
				ipt4 + " -D BRAIDPOL-TO 1", ipt4 + " -A BRAIDPOL-REFUSE -j ACCEPT", ipt6 + " -N BRAIDPOL-MORE", ipt4 + " -A OUTPUT -j BRAIDPOL-REFUSE",
				ipt4 + ` -A FORWARD -m comment --comment "braid policy" -j BRAIDPOL-FORWARD`,
				"ipset flush", "ipset flush " + some, "ipset add braid4-from-open-a 10.244.1.77 || ipset add braid4-from-open-b 10.244.1.77", "ipset create braid4-more hash:ip",
				ipt4 + " -F; " + ipt4 + " -X; " + ipt6 + " -F; " + ipt6 + " -X; ipset destroy"} {
				k.node.Exec(t, "sh", "-c", damage)
				if why := k.replace(); len(why) == 0 && !strings.HasSuffix(damage, "ipset destroy") {
					t.Errorf("%s: not seen", damage)
				}
				if why := k.Damage(k.node.Compiler.All()); why != "" {
					t.Errorf("%s: still damaged: %v", damage, why)
				}
			}
			k.node.Agree(3, 3)
		})
	}
}

// TestOthersKeepTheirRules: others' rules and sets stay, in their order, also when ours go.
func TestOthersKeepTheirRules(t *testing.T) {
	k := newRig(t, ipt.NFT, Options{})
	k.node.Exec(t, "sh", "-c", "iptables-nft -A FORWARD -s 192.0.2.77 -j DROP; iptables-nft -N BRAID-FORWARD; iptables-nft -A FORWARD -j BRAID-FORWARD; ipset create others hash:ip")
	k.node.Exec(t, "iptables-nft", "-D", "FORWARD", "1")
	k.replace()
	want := []string{jumps["FORWARD"], "-s 192.0.2.77/32 -j DROP", "-j BRAID-FORWARD"}
	if have := k.read()[false].Rules["FORWARD"]; !slices.Equal(have, want) {
		t.Errorf("FORWARD has %q, want %q", have, want)
	}
	for _, ipv6 := range both {
		k.node.Run(t, func() error {
			saved, err := k.tools[ipv6].Save()
			if err == nil {
				err = k.tools[ipv6].Restore(Cleanup(saved))
			}
			return err
		})
	}
	left := k.Print()
	if strings.Contains(left, "BRAIDPOL-") || !strings.Contains(left, "-j BRAID-FORWARD") || !strings.Contains(left, "create others") {
		t.Errorf("left:\n%s", left)
	}
}

// TestPrefixes: ranges become prefixes that have the same addresses and are as few as can be, and none is that of all
// addresses, for which the kernel has no place.
func TestPrefixes(t *testing.T) {
	for text, want := range map[string]string{
		"0.0.0.0-255.255.255.255":                    "0.0.0.0/1 128.0.0.0/1",
		"10.0.0.1-10.0.0.6":                          "10.0.0.1 10.0.0.2/31 10.0.0.4/31 10.0.0.6",
		"10.0.0.0-10.0.0.255":                        "10.0.0.0/24",
		"255.255.255.255-255.255.255.255":            "255.255.255.255",
		"::-ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff": "::/1 8000::/1",
		"fd00::-fd00::2":                             "fd00::/127 fd00::2",
		"0.0.0.0-9.255.255.255":                      "0.0.0.0/5 8.0.0.0/7",
	} {
		from, to, _ := strings.Cut(text, "-")
		s := &policy.Set{Kind: policy.RangeSet, Ranges: []policy.Range{{From: netip.MustParseAddr(from), To: netip.MustParseAddr(to)}}}
		f := families[s.Ranges[0].From.Is6()]
		var got []string
		for _, m := range f.ranges(s) {
			got = append(got, m.String())
		}
		if strings.Join(got, " ") != want {
			t.Errorf("%s: %q, want %q", text, got, want)
		}
		if other := families[!f.ipv6].ranges(s); other != nil {
			t.Errorf("%s: the other family has %v", text, other)
		}
	}
}

// TestPorts: many ports take few rules, and no more numbers in one than the match takes.
func TestPorts(t *testing.T) {
	r := &policy.Rule{}
	for i := range uint16(16) {
		r.Ports = append(r.Ports, policy.PortRange{Protocol: 6, From: 10 * i, To: 10*i + i%2})
	}
	r.Ports = append(r.Ports, policy.PortRange{Protocol: 17, To: 65535}, policy.PortRange{Protocol: 132, From: 9, To: 9})
	got := families[false].ports(r)
	want := []portMatch{{"-p tcp", "-m multiport --dports 0,10:11,20,30:31,40,50:51,60,70:71,80,90:91"}, {"-p tcp", "-m multiport --dports 100,110:111,120,130:131,140,150:151"},
		{"-p udp", ""}, {"-p sctp", "-m multiport --dports 9"}}
	if !slices.Equal(got, want) {
		t.Errorf("got %q", got)
	}
}

// TestNamesFitTheKernel: chains have up to 28 bytes, sets up to 31.
func TestNamesFitTheKernel(t *testing.T) {
	id := strings.Repeat("f", 20)
	if n := len(chainName(id)); n > 28 {
		t.Errorf("a chain's name has %d bytes", n)
	}
	f := families[true]
	for _, name := range []string{f.podsName(list{policy.Egress, id}, "a"), f.podsName(list{policy.Egress, ""}, "b"), f.setName(&policy.Set{ID: id, Kind: policy.RangeSet}), f.setName(&policy.Set{ID: id, Kind: policy.PortSet})} {
		if len(name) > 31 || !Ours(name) {
			t.Errorf("%s has %d bytes", name, len(name))
		}
	}
	if _, err := NewState(both, Options{}).Apply(policy.Delta{}); err == nil {
		t.Error("a state that knows nothing took a change")
	}
	for _, f := range families {
		if want := xt.PolicySet(f.ipv6) + "a"; f.podsName(list{policy.Egress, ""}, "a") != want {
			t.Errorf("the CNI plugin looks for %s", want)
		}
		for i, direction := range []policy.Direction{policy.Egress, policy.Ingress} {
			if prefix := xt.PolicyPods(f.ipv6)[i]; !strings.HasPrefix(f.podsName(list{direction, id}, "a"), prefix) {
				t.Errorf("the CNI plugin looks for %s", prefix)
			}
		}
	}
	if Ours("braid-x") || Ours("other") {
		t.Error("others' sets are taken for ours")
	}
}
