package cli

import (
	"strings"

	"github.com/spf13/pflag"
)

// kubeProxyNames are flags of kube-proxy that are accepted in place of ours of another name. Many others have its names.
var kubeProxyNames = map[string]string{
	"hostname-override":            "node",
	"proxy-mode":                   "service-mode",
	"metrics-bind-address":         "http",
	"iptables-localhost-nodeports": "localhost-nodeports",
}

// kubeProxyAdvice says of other flags of kube-proxy, or of all that begin so, what to do without.
var kubeProxyAdvice = []struct{ name, advice string }{
	{"iptables-masquerade-bit", "packets to be masqueraded carry bit 14, which is its default"},
	{"iptables-", asTheyCome},
	{"nftables-masquerade-bit", "packets to be masqueraded carry bit 14, which is its default"},
	{"nftables-", asTheyCome},
	{"ipvs-", "there is no mode IPVS: leave it out, service-mode nftables does as well with many services"},
	{"config-sync-period", asTheyCome},
	{"bind-address", "services are bound to no address: nodeport-addresses says where node ports are served"},
	{"cleanup", "use netagent cleanup, or for what kube-proxy left netagent cleanup --foreign kube-proxy"},
	{"init-only", "the agent's container needs no privileges that would have to be given up"},
	{"kube-api-", "the agent reads by watches, one for each kind of object, and has no limit to be raised"},
	{"master", "use kubeconfig"},
	{"feature-gates", "no feature is behind a gate"},
	{"oom-score-adj", "set it in the pod: priorityClassName"},
	{"profiling", "there is no profiling endpoint"},
	{"logging-format", "use log-format: text or json"},
	{"v", "use log-level: debug, info, warn or error"},
	{"write-config-to", "netagent run --help prints every setting with its default"},
	{"show-hidden-metrics-for-version", "no metric is hidden"},
	{"windows-", "the agent runs on Linux"},
}

const asTheyCome = "changes are written as they come, and all is compared every few minutes: leave it out"

// acceptKubeProxyNames makes flags known by the names that kube-proxy has for them too.
func acceptKubeProxyNames(f *pflag.FlagSet) {
	f.SetNormalizeFunc(func(_ *pflag.FlagSet, name string) pflag.NormalizedName {
		if ours, ok := kubeProxyNames[name]; ok {
			name = ours
		}
		return pflag.NormalizedName(name)
	})
}

// adviceFor says what to do without a setting of kube-proxy, "" when it is none.
func adviceFor(name string) string {
	for _, a := range kubeProxyAdvice {
		if name == a.name || strings.HasSuffix(a.name, "-") && strings.HasPrefix(name, a.name) {
			return "a setting of kube-proxy that does not exist here: " + a.advice
		}
	}
	return ""
}

// unknownFlag finds the name in pflag's words for a flag that is not known, "" when they are others.
func unknownFlag(err error) string {
	rest, ok := strings.CutPrefix(err.Error(), "unknown flag: --")
	if !ok {
		rest, ok = strings.CutPrefix(err.Error(), "unknown shorthand flag: '")
		rest, _, _ = strings.Cut(rest, "'")
	}
	if !ok {
		return ""
	}
	return rest
}
