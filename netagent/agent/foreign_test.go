package agent

import (
	"log/slog"
	"strings"
	"testing"

	"github.com/braidnet/braid/internal/kernel/ipt"
	"github.com/braidnet/braid/internal/kernel/netns/nstest"
)

// kubeProxyRules are some of each kind that kube-proxy makes, beside the kubelet's and somebody else's.
const kubeProxyRules = `*mangle
:KUBE-PROXY-CANARY - [0:0]
:KUBE-KUBELET-CANARY - [0:0]
:KUBE-IPTABLES-HINT - [0:0]
COMMIT
*nat
:KUBE-SERVICES - [0:0]
:KUBE-NODEPORTS - [0:0]
:KUBE-POSTROUTING - [0:0]
:KUBE-MARK-MASQ - [0:0]
:KUBE-SVC-AAAAAAAAAAAAAAAA - [0:0]
:KUBE-SEP-BBBBBBBBBBBBBBBB - [0:0]
:OTHER - [0:0]
-A PREROUTING -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
-A PREROUTING -j OTHER
-A POSTROUTING -j KUBE-POSTROUTING
-A KUBE-SERVICES -p tcp -m tcp --dport 80 -m comment --comment "default/web \"-j OTHER\"" -j KUBE-SVC-AAAAAAAAAAAAAAAA
-A KUBE-SERVICES -m addrtype --dst-type LOCAL -j KUBE-NODEPORTS
-A KUBE-SVC-AAAAAAAAAAAAAAAA -j KUBE-MARK-MASQ
-A KUBE-SVC-AAAAAAAAAAAAAAAA -j KUBE-SEP-BBBBBBBBBBBBBBBB
-A KUBE-MARK-MASQ -j MARK --set-xmark 0x4000/0x4000
-A OTHER -p tcp -m tcp --dport 9 -j RETURN
COMMIT
*filter
:KUBE-FORWARD - [0:0]
:KUBE-FIREWALL - [0:0]
-A FORWARD -j KUBE-FORWARD
-A INPUT -j KUBE-FIREWALL
-A FORWARD -p tcp -m tcp --dport 9 -j DROP
COMMIT
`

func TestCleanupForeign(t *testing.T) {
	ns := nstest.New(t)
	cleanup := func() (removed []string) {
		ns.Run(t, func() (err error) {
			removed, err = CleanupForeign("kube-proxy", slog.New(slog.DiscardHandler))
			return err
		})
		return removed
	}
	if removed := cleanup(); len(removed) != 0 {
		t.Errorf("in an empty namespace it says it removed %v", removed)
	}
	want := map[string]int{"nftables": 2, "device": 1}
	var saves []string // programs that list rules
	for _, v := range ipt.Variants {
		for _, base := range []string{"iptables", "ip6tables"} {
			tool := base + "-" + string(v)
			if !haveTool(tool + "-restore") {
				t.Logf("without %s", tool)
				continue
			}
			ns.Exec(t, "sh", "-c", tool+"-restore <<'END'\n"+kubeProxyRules+"END\n")
			saves = append(saves, tool+"-save")
			want["iptables"]++
		}
	}
	for _, family := range []string{"ip", "ip6"} {
		for _, table := range []string{"kube-proxy", "braid", "other"} {
			ns.Exec(t, "nft", "add", "table", family, table)
		}
	}
	ns.Exec(t, "ip", "link", "add", "kube-ipvs0", "type", "bridge") // IPVS has a dummy there; this kernel may have none

	got := map[string]int{}
	for _, r := range cleanup() {
		word, _, _ := strings.Cut(r, " ")
		got[word]++
	}
	for word, n := range want {
		if got[word] != n {
			t.Errorf("removed %d times %s, want %d", got[word], word, n)
		}
	}
	for _, save := range saves {
		rules := ns.Exec(t, save)
		for _, gone := range []string{"KUBE-SERVICES", "KUBE-SVC", "KUBE-SEP", "KUBE-FORWARD", "KUBE-MARK-MASQ", "KUBE-POSTROUTING", "KUBE-PROXY-CANARY"} {
			if strings.Contains(rules, gone) {
				t.Errorf("%s still lists %s:\n%s", save, gone, rules)
			}
		}
		for _, kept := range []string{"-A INPUT -j KUBE-FIREWALL", "KUBE-KUBELET-CANARY", "KUBE-IPTABLES-HINT", "-A PREROUTING -j OTHER", "-A FORWARD -p tcp -m tcp --dport 9 -j DROP"} {
			if !strings.Contains(rules, kept) {
				t.Errorf("%s does not list %s any more:\n%s", save, kept, rules)
			}
		}
	}
	tables := ns.Exec(t, "nft", "list", "tables")
	for _, family := range []string{"ip", "ip6"} {
		if strings.Contains(tables, "table "+family+" kube-proxy") || !strings.Contains(tables, "table "+family+" braid") || !strings.Contains(tables, "table "+family+" other") {
			t.Errorf("tables are now\n%s", tables)
		}
	}
	if removed := cleanup(); len(removed) != 0 {
		t.Errorf("a second time it says it removed %v", removed)
	}
	if _, err := CleanupForeign("ipvsadm", slog.New(slog.DiscardHandler)); err == nil || !strings.Contains(err.Error(), "kube-proxy") {
		t.Errorf("an unknown proxy: %v, want an error that lists the known ones", err)
	}
}
