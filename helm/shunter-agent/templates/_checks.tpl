{{/*
What values.schema.json cannot say: what is missing, and what contradicts itself. Each fault is told by a sentence that
names the value, all of them at once.
*/}}
{{- define "shunter-agent.checks" -}}
{{- $faults := list -}}
{{- range list "needed" "pools" "authentication" "rights" "scaling" "stopping" "variables" "files" -}}
{{- $faults = concat $faults (include (printf "shunter-agent.check.%s" .) $ | fromYamlArray) -}}
{{- end -}}
{{- if $faults -}}
{{- fail (printf "\n\n  %s\n" (join "\n  " $faults)) -}}
{{- end -}}
{{- end -}}

{{- define "shunter-agent.check.needed" -}}
{{- if not .Values.api.url }}
- "api.url is missing: the address of the server's API, such as http://server-shunter-server:4400/api."
{{- end }}
{{- if not .Values.pools }}
- "pools is empty: name at least one pool that the agents serve, such as --set 'pools={cluster}'."
{{- end }}
{{- end -}}

{{- define "shunter-agent.check.pools" -}}
{{- if not .Values.createPools }}
{{- if .Values.template }}
- "template has an effect only with createPools: the agents give it to the pools that they make. Set createPools, or leave template away and use `shunter pool template set`."
{{- end }}
{{- if .Values.match }}
- "match has an effect only with createPools: the agents give it to the pools that they make. Set createPools, or leave match away."
{{- end }}
{{- end }}
{{- range $name, $_ := .Values.template.secret_env }}
- {{ printf "template.secret_env.%s would be readable in a ConfigMap and in the release: put it into a Secret, and name that by template.env_refs or template.env_from." $name | quote }}
{{- end }}
{{- if and (eq .Values.poolType "kubernetes") .Values.template.namespace (not (has .Values.template.namespace (include "shunter-agent.namespaces" . | fromJsonArray))) }}
- {{ printf "template.namespace is %s, where the agents have no rights: add it to namespaces, which is %s." .Values.template.namespace (include "shunter-agent.namespaces" . | fromJsonArray | join ", ") | quote }}
{{- end }}
{{- end -}}

{{- define "shunter-agent.check.authentication" -}}
{{- $auth := .Values.auth }}
{{- if and (eq $auth.mode "existingSecret") (not $auth.existingSecret.name) }}
- "auth.existingSecret.name is missing: with auth.mode existingSecret it names the Secret with the agents' key."
{{- end }}
{{- if and (ne $auth.mode "existingSecret") $auth.existingSecret.name }}
- {{ printf "auth.existingSecret.name is set, but auth.mode is %s: agents show one thing only. Set auth.mode to existingSecret, or leave the name away." $auth.mode | quote }}
{{- end }}
{{- if and (eq $auth.mode "enrolment") (not $auth.enrolment.name) }}
- "auth.enrolment.name is missing: with auth.mode enrolment it names the Secret with the enrolment token of `shunter agent invite`."
{{- end }}
{{- if and (ne $auth.mode "enrolment") $auth.enrolment.name }}
- {{ printf "auth.enrolment.name is set, but auth.mode is %s: agents show one thing only. Set auth.mode to enrolment, or leave the name away." $auth.mode | quote }}
{{- end }}
{{- if and (eq $auth.mode "enrolment") (gt (len .Values.pools) 1) }}
- {{ printf "pools has %d names, but an invitation (auth.mode enrolment) is for one pool: install a release for each." (len .Values.pools) | quote }}
{{- end }}
{{- if and .Values.ca.secret .Values.ca.configMap }}
- "ca.secret and ca.configMap are both set: the authority is in one of them."
{{- end }}
{{- end -}}

{{- define "shunter-agent.check.rights" -}}
{{- if and (not .Values.serviceAccount.create) (not .Values.serviceAccount.name) }}
- "serviceAccount.name is missing: without serviceAccount.create it names the account that is there. The account `default` is no choice, since every pod of the namespace has it."
{{- end }}
{{- if and .Values.namespaces (eq .Values.poolType "process") }}
- "namespaces has no meaning for process pools: their runs are in the agents' own pods."
{{- else if and .Values.namespaces (not .Values.rbac.create) }}
- "namespaces is set, but rbac.create is false: it says where the chart makes Roles. Set rbac.create, or leave namespaces away and make the Roles of docs/kubernetes-pools.md yourself."
{{- end }}
{{- end -}}

{{- define "shunter-agent.check.scaling" -}}
{{- $scaling := .Values.autoscaling }}
{{- $chosen := list }}
{{- range list "hpa" "keda" "scaledJob" }}
{{- if (get $scaling .).enabled }}
{{- $chosen = append $chosen (printf "autoscaling.%s.enabled" .) }}
{{- end }}
{{- end }}
{{- if gt (len $chosen) 1 }}
- {{ printf "%s contradict each other: one thing scales the agents." (join " and " $chosen) | quote }}
{{- end }}
{{- if and $scaling.scaledJob.enabled (ne .Values.poolType "process") }}
- {{ printf "autoscaling.scaledJob.enabled is for process pools, but poolType is %s: there each run is a Job already. Use autoscaling.keda." .Values.poolType | quote }}
{{- end }}
{{- if and .Values.once (not $scaling.scaledJob.enabled) }}
- "once is set without autoscaling.scaledJob.enabled: a Deployment would start each agent that has ended again, ever more slowly."
{{- end }}
{{- if and .Values.once (gt (include "shunter-agent.limit" . | int) 1) }}
- {{ printf "limit is %d, but with once an agent takes one run." (int .Values.limit) | quote }}
{{- end }}
{{- if and $scaling.hpa.enabled (kindIs "invalid" $scaling.hpa.targetCPU) (kindIs "invalid" $scaling.hpa.targetMemory) (not $scaling.hpa.metrics) }}
- "autoscaling.hpa.enabled is set, but there is nothing to go by: set autoscaling.hpa.targetCPU, targetMemory or metrics."
{{- end }}
{{- if and $scaling.hpa.enabled (gt (int $scaling.hpa.minReplicas) (int $scaling.hpa.maxReplicas)) }}
- {{ printf "autoscaling.hpa.minReplicas is %d, more than maxReplicas, which is %d." (int $scaling.hpa.minReplicas) (int $scaling.hpa.maxReplicas) | quote }}
{{- end }}
{{- if and $scaling.keda.enabled (gt (int $scaling.keda.minReplicas) (int $scaling.keda.maxReplicas)) }}
- {{ printf "autoscaling.keda.minReplicas is %d, more than maxReplicas, which is %d." (int $scaling.keda.minReplicas) (int $scaling.keda.maxReplicas) | quote }}
{{- end }}
{{- if or $scaling.keda.enabled $scaling.scaledJob.enabled }}
{{- $scaler := ternary "autoscaling.keda.enabled" "autoscaling.scaledJob.enabled" $scaling.keda.enabled }}
{{- $metrics := $scaling.metrics }}
{{- if .Values.queues }}
- {{ printf "queues contradicts %s: the server tells what whole pools want, so agents would come for runs that they do not serve. Leave queues away, or give these runs a pool of their own." $scaler | quote }}
{{- end }}
{{- if and $metrics.secret.name $metrics.authenticationRef }}
- "autoscaling.metrics.secret.name and autoscaling.metrics.authenticationRef are both set: KEDA shows one thing only."
{{- end }}
{{- if eq $metrics.source "prometheus" }}
{{- if not $metrics.prometheusAddress }}
- {{ printf "%s needs autoscaling.metrics.prometheusAddress: with source prometheus it says where Prometheus is." $scaler | quote }}
{{- end }}
{{- else if not (or $metrics.secret.name $metrics.authenticationRef) }}
- {{ printf "%s needs autoscaling.metrics.secret.name: the server tells its metrics to who shows a key. Make one by `shunter key create keda --role viewer`, put it into a Secret, and name that; or name an authenticationRef." $scaler | quote }}
{{- end }}
{{- end }}
{{- end -}}

{{- define "shunter-agent.check.stopping" -}}
{{- $budget := .Values.podDisruptionBudget }}
{{- if and $budget.enabled (kindIs "invalid" $budget.minAvailable) (kindIs "invalid" $budget.maxUnavailable) }}
- "podDisruptionBudget.maxUnavailable and podDisruptionBudget.minAvailable are both missing: set one of them, or enabled to false."
{{- end }}
{{- if and .Values.drainGrace (ne .Values.poolType "process") }}
- {{ printf "drainGrace is for process pools, but poolType is %s: these agents hand their Jobs over and do not wait for them." .Values.poolType | quote }}
{{- end }}
{{- if and (eq .Values.poolType "process") (not (kindIs "invalid" .Values.terminationGracePeriodSeconds)) }}
{{- $drain := include "shunter-agent.seconds" (include "shunter-agent.drainGrace" .) | int }}
{{- if le (int .Values.terminationGracePeriodSeconds) $drain }}
- {{ printf "terminationGracePeriodSeconds is %d, not more than drainGrace, which is %d seconds: the agent would be killed while it waits for its runs." (int .Values.terminationGracePeriodSeconds) $drain | quote }}
{{- end }}
{{- end }}
{{- end -}}

{{/* Names of variables are unique in a pod: server-side apply refuses others, and of two it could not be told which holds. */}}
{{- define "shunter-agent.check.variables" -}}
{{- $own := list }}
{{- range include "shunter-agent.ownEnvironment" . | fromYamlArray }}
{{- $own = append $own .name }}
{{- end }}
{{- $seen := list }}
{{- range .Values.extraEnv }}
{{- if has .name (list "SHUNTER_TOKEN" "SHUNTER_TOKEN_FILE" "SHUNTER_JOIN_TOKEN") }}
- {{ printf "extraEnv sets %s, but what the agents show is a matter of auth.mode." .name | quote }}
{{- else if has .name $own }}
- {{ printf "extraEnv sets %s, which the chart sets by another value." .name | quote }}
{{- else if has .name $seen }}
- {{ printf "extraEnv sets %s twice." .name | quote }}
{{- end }}
{{- $seen = append $seen .name }}
{{- end }}
{{- end -}}

{{/* Names of volumes and containers are unique in a pod. */}}
{{- define "shunter-agent.check.files" -}}
{{- $taken := list "home" "tmp" "shunter-token" "shunter-ca" "kubernetes" "enrolment" "configuration" }}
{{- range .Values.extraVolumes }}
{{- if has .name $taken }}
- {{ printf "extraVolumes has a volume called %s, a name that the chart uses itself: choose another." .name | quote }}
{{- end }}
{{- end }}
{{- $containers := list "agent" "join" }}
{{- range concat .Values.extraInitContainers .Values.extraContainers }}
{{- if has .name $containers }}
- {{ printf "extraContainers or extraInitContainers has a container called %s, a name that the chart uses itself: choose another." .name | quote }}
{{- end }}
{{- end }}
{{- end -}}
