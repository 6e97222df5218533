package main

import (
	"log"
	"os"

	"github.com/coredns/caddy"
	"github.com/coredns/coredns/core/dnsserver"
	_ "github.com/coredns/coredns/plugin/bind"
	_ "github.com/coredns/coredns/plugin/errors"
	_ "github.com/coredns/coredns/plugin/kubernetes"
	_ "github.com/coredns/coredns/plugin/ready"
	_ "github.com/coredns/coredns/plugin/template"
	"github.com/spf13/cobra"
)

// newDNSCommand is CoreDNS with the few plugins that a cluster's names need; it runs until it is killed.
func newDNSCommand() *cobra.Command {
	return &cobra.Command{
		Use:          "dns COREFILE",
		Args:         cobra.ExactArgs(1),
		SilenceUsage: true,
		RunE: func(_ *cobra.Command, words []string) error {
			// The other programs write what Go's log is told to klog, and CoreDNS what klog is told to Go's log: together
			// they wait for themselves at the first word, for example that a watch has ended, and names stay as they were.
			log.SetOutput(os.Stderr)
			corefile, err := os.ReadFile(words[0])
			if err != nil {
				return err
			}
			// In the order in which they see a question.
			dnsserver.Directives = []string{"bind", "ready", "errors", "kubernetes", "template"}
			instance, err := caddy.Start(caddy.CaddyfileInput{
				Filepath: words[0], Contents: corefile, ServerTypeName: "dns",
			})
			if err != nil {
				return err
			}
			instance.Wait()
			return nil
		},
	}
}
