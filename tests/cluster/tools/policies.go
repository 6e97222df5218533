package main

import (
	"bytes"
	"context"
	"fmt"
	"net/netip"
	"os/exec"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	core "k8s.io/api/core/v1"
	networking "k8s.io/api/networking/v1"
	meta "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/tools/clientcmd"
)

const (
	policed = "POLICED"
	anyone  = "0.0.0.0/0"
	// Changes come in crowds, and each of them writes all rules anew.
	pause = 20 * time.Millisecond
)

// newPoliciesCommand enforces NetworkPolicies on one node by rules of its packet filter: what is not allowed is dropped.
//
// What passes between pods goes over the node's bridge and by FORWARD, what goes to the node itself by INPUT; both see
// where a service sends it. The node reaches its pods always, as the kubelet has to.
func newPoliciesCommand() *cobra.Command {
	return &cobra.Command{
		Use:          "policies KUBECONFIG NODE DNS",
		Args:         cobra.ExactArgs(3),
		SilenceUsage: true,
		RunE: func(command *cobra.Command, words []string) error {
			config, err := clientcmd.BuildConfigFromFlags("", words[0])
			if err != nil {
				return err
			}
			client, err := kubernetes.NewForConfig(config)
			if err != nil {
				return err
			}
			return police(command.Context(), client, words[1], words[2])
		},
	}
}

func police(ctx context.Context, client kubernetes.Interface, node, dns string) error {
	all := informers.NewSharedInformerFactory(client, 0)
	here := informers.NewSharedInformerFactoryWithOptions(client, 0, informers.WithTweakListOptions(
		func(options *meta.ListOptions) {
			options.FieldSelector = fields.OneTermEqualSelector("spec.nodeName", node).String()
		},
	))
	changed := make(chan struct{}, 1)
	tell := func() {
		select {
		case changed <- struct{}{}:
		default:
		}
	}
	handler := cache.ResourceEventHandlerFuncs{
		AddFunc: func(any) { tell() }, UpdateFunc: func(any, any) { tell() }, DeleteFunc: func(any) { tell() },
	}
	pods, namespaces := here.Core().V1().Pods(), all.Core().V1().Namespaces()
	policies := all.Networking().V1().NetworkPolicies()
	for _, informer := range []cache.SharedIndexInformer{pods.Informer(), namespaces.Informer(), policies.Informer()} {
		if _, err := informer.AddEventHandler(handler); err != nil {
			return err
		}
	}
	for _, factory := range []informers.SharedInformerFactory{all, here} {
		factory.Start(ctx.Done())
		factory.WaitForCacheSync(ctx.Done())
	}
	if err := hook(); err != nil {
		return err
	}
	filter := &filter{}
	for range changed {
		time.Sleep(pause)
		seen := world{dns: dns, namespaces: map[string]labels.Set{}}
		seen.pods, _ = pods.Lister().List(labels.Everything())
		seen.policies, _ = policies.Lister().List(labels.Everything())
		found, _ := namespaces.Lister().List(labels.Everything())
		for _, one := range found {
			seen.namespaces[one.Name] = one.Labels
		}
		if err := filter.write(seen.chains()); err != nil {
			return err // and is started again, with all rules anew
		}
	}
	return nil
}

// hook has everything pass the first chain. Who is started again finds it.
func hook() error {
	_ = run("iptables", "", "-w", "-N", policed)
	for _, chain := range []string{"FORWARD", "INPUT"} {
		if run("iptables", "", "-w", "-C", chain, "-j", policed) == nil {
			continue
		}
		if err := run("iptables", "", "-w", "-I", chain, "-j", policed); err != nil {
			return err
		}
	}
	return nil
}

// filter is what was last written to the node's packet filter.
type filter struct{ chains map[string][]string }

func (f *filter) write(chains map[string][]string) error {
	if fmt.Sprint(chains) == fmt.Sprint(f.chains) {
		return nil
	}
	var declared, rules, gone strings.Builder
	for _, name := range names(chains) {
		fmt.Fprintf(&declared, ":%s - [0:0]\n", name)
		for _, rule := range chains[name] {
			fmt.Fprintf(&rules, "-A %s %s\n", name, rule)
		}
	}
	for _, name := range names(f.chains) {
		if _, kept := chains[name]; !kept {
			fmt.Fprintf(&declared, ":%s - [0:0]\n", name)
			fmt.Fprintf(&gone, "-X %s\n", name)
		}
	}
	text := "*filter\n" + declared.String() + rules.String() + gone.String() + "COMMIT\n"
	if err := run("iptables-restore", text, "-w", "--noflush"); err != nil {
		return fmt.Errorf("%w\n%s", err, text)
	}
	f.chains = chains
	return nil
}

func names(chains map[string][]string) []string {
	found := make([]string, 0, len(chains))
	for name := range chains {
		found = append(found, name)
	}
	slices.Sort(found)
	return found
}

func run(program, input string, words ...string) error {
	command := exec.Command(program, words...)
	command.Stdin = strings.NewReader(input)
	var said bytes.Buffer
	command.Stdout, command.Stderr = &said, &said
	if err := command.Run(); err != nil {
		return fmt.Errorf("%s %s: %w: %s", program, strings.Join(words, " "), err, said.String())
	}
	return nil
}

// world is what the rules depend on.
type world struct {
	dns        string
	pods       []*core.Pod
	namespaces map[string]labels.Set
	policies   []*networking.NetworkPolicy
}

// chains are the first chain, and one for each direction of each pod that a policy isolates: a packet comes back from
// it if it is allowed.
func (w world) chains() map[string][]string {
	first := []string{"-m conntrack --ctstate RELATED,ESTABLISHED -j RETURN"}
	found := map[string][]string{}
	for _, pod := range w.pods {
		if pod.Spec.HostNetwork || pod.Status.PodIP == "" || ended(pod) {
			continue
		}
		for _, way := range []way{{networking.PolicyTypeEgress, "-s", "-d"}, {networking.PolicyTypeIngress, "-d", "-s"}} {
			if rules, isolated := w.allowed(pod, way); isolated {
				name := fmt.Sprintf("%s-%s", strings.ToUpper(string(way.kind)), pod.Status.PodIP)
				first = append(first, fmt.Sprintf("%s %s -j %s", way.of, pod.Status.PodIP, name))
				found[name] = append(rules, "-j DROP")
			}
		}
	}
	slices.Sort(first[1:])
	found[policed] = first
	return found
}

func ended(pod *core.Pod) bool {
	return pod.Status.Phase == core.PodSucceeded || pod.Status.Phase == core.PodFailed
}

// way is a direction, with the words of the packet filter for a pod's own address and for the other one's.
type way struct {
	kind         networking.PolicyType
	of, opposite string
}

func (w world) allowed(pod *core.Pod, way way) (rules []string, isolated bool) {
	for _, policy := range w.policies {
		if policy.Namespace != pod.Namespace || !slices.Contains(policy.Spec.PolicyTypes, way.kind) ||
			!matches(&policy.Spec.PodSelector, pod.Labels) {
			continue
		}
		isolated = true
		if way.kind == networking.PolicyTypeIngress {
			for _, rule := range policy.Spec.Ingress {
				for _, peer := range w.peers(policy.Namespace, rule.From) {
					rules = append(rules, lines(way, peer.address, pod, rule.Ports)...)
				}
			}
		} else {
			for _, rule := range policy.Spec.Egress {
				for _, peer := range w.peers(policy.Namespace, rule.To) {
					rules = append(rules, lines(way, peer.address, peer.pod, rule.Ports)...)
				}
			}
		}
	}
	slices.Sort(rules)
	return slices.Compact(rules), isolated
}

// peer is an address or a network, and the pod that has it, if one does.
type peer struct {
	address string
	pod     *core.Pod
}

func (w world) peers(namespace string, described []networking.NetworkPolicyPeer) (found []peer) {
	if len(described) == 0 {
		return []peer{{address: anyone}}
	}
	for _, one := range described {
		if one.IPBlock != nil {
			for _, part := range without(netip.MustParsePrefix(one.IPBlock.CIDR), one.IPBlock.Except) {
				found = append(found, peer{address: part.String()})
			}
			continue
		}
		for _, pod := range w.known() {
			inside := pod.Namespace == namespace
			if one.NamespaceSelector != nil {
				inside = matches(one.NamespaceSelector, w.namespaces[pod.Namespace])
			}
			if inside && (one.PodSelector == nil || matches(one.PodSelector, pod.Labels)) {
				found = append(found, peer{pod.Status.PodIP, pod})
			}
		}
	}
	return found
}

// known are the pods that have an address, and the node's DNS as if it were the pod that it is elsewhere.
func (w world) known() []*core.Pod {
	dns := &core.Pod{
		ObjectMeta: meta.ObjectMeta{Namespace: meta.NamespaceSystem, Labels: labels.Set{"k8s-app": "kube-dns"}},
		Status:     core.PodStatus{PodIP: w.dns},
	}
	found := []*core.Pod{dns}
	for _, pod := range w.pods {
		if !pod.Spec.HostNetwork && pod.Status.PodIP != "" && !ended(pod) {
			found = append(found, pod)
		}
	}
	return found
}

func lines(way way, address string, target *core.Pod, ports []networking.NetworkPolicyPort) (found []string) {
	match := fmt.Sprintf("%s %s", way.opposite, address)
	if len(ports) == 0 {
		return []string{match + " -j RETURN"}
	}
	for _, port := range ports {
		protocol := core.ProtocolTCP
		if port.Protocol != nil {
			protocol = *port.Protocol
		}
		words := fmt.Sprintf("%s -p %s", match, strings.ToLower(string(protocol)))
		if port.Port == nil {
			found = append(found, words+" -j RETURN")
		} else if number := numbered(*port.Port, protocol, target); number != 0 {
			last := number
			if port.EndPort != nil {
				last = *port.EndPort
			}
			found = append(found, fmt.Sprintf("%s --dport %d:%d -j RETURN", words, number, last))
		}
	}
	return found
}

// numbered is the number of a port, which a pod may have by name; 0 if it does not.
func numbered(port intstr.IntOrString, protocol core.Protocol, target *core.Pod) int32 {
	if port.Type == intstr.Int {
		return port.IntVal
	}
	if target != nil {
		for _, container := range target.Spec.Containers {
			for _, one := range container.Ports {
				if one.Name == port.StrVal && one.Protocol == protocol {
					return one.ContainerPort
				}
			}
		}
	}
	return 0
}

// without is a network in parts, such that none of them is in the excepted ones.
func without(network netip.Prefix, excepted []string) []netip.Prefix {
	if network.Addr().Is6() {
		return nil // this node has no addresses of version 6
	}
	for _, text := range excepted {
		one := netip.MustParsePrefix(text)
		if one.Bits() <= network.Bits() && one.Contains(network.Addr()) {
			return nil
		}
		if network.Contains(one.Addr()) {
			low := netip.PrefixFrom(network.Addr(), network.Bits()+1).Masked()
			bytes := low.Addr().As4()
			bytes[network.Bits()/8] |= 0x80 >> (network.Bits() % 8)
			high := netip.PrefixFrom(netip.AddrFrom4(bytes), low.Bits())
			return append(without(low, excepted), without(high, excepted)...)
		}
	}
	return []netip.Prefix{network.Masked()}
}

func matches(selector *meta.LabelSelector, set labels.Set) bool {
	found, err := meta.LabelSelectorAsSelector(selector)
	return err == nil && found.Matches(set)
}
